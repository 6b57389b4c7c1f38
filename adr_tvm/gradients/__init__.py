"""Gradients of the operators that networks are trained with, one operator or family of them to a file."""

from __future__ import annotations


def register_all() -> None:
    """Register the operators and gradients of this package; once per process, later calls change nothing."""
    from adr_tvm.gradients import (
        batch_norm,
        conv2d,
        conv_transpose,
        dropout,
        elementwise,
        epilogue,
        layer_norm,
        loss,
        lrn,
        nonzero,
        pooling,
        reductions,
        resize,
        reuse,
        shape_ops,
    )

    for family in (
        *(epilogue, conv2d, nonzero, conv_transpose, reuse),  # an operator before those whose gradients use it
        *(batch_norm, dropout, elementwise, layer_norm, loss, lrn, pooling, reductions, resize, shape_ops),
    ):
        family.register()
