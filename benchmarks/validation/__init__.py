"""The checks of ``benchmarks/validate.py``, a module for each."""
