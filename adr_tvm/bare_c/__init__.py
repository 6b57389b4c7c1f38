"""Bare C: a network as self-contained C99 for microcontrollers; no runtime, no heap."""
