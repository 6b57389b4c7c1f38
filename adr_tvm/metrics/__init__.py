"""Metrics of a network's outputs, and confidence bounds for them."""
