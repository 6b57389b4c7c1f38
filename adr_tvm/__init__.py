"""Adaptive Deep Reuse for TVM."""

__version__ = "0.1.0"
