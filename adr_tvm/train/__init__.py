"""Training with reuse in forward and backward."""
