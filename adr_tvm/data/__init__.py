"""Calibration data: opening, checking and streaming them."""
