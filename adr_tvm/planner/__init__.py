"""Choosing what each layer does: candidates, measurements, sensitivity, choice under a budget, verification."""
