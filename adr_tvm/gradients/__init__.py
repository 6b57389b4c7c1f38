"""Gradients of the operators that networks are trained with, one operator or family of them to a file."""
