"""Gradients of the operators that networks are trained with, one operator or family of them to a file."""

from __future__ import annotations


def register_all() -> None:
    """Register the operators and gradients of this package; once per process, later calls change nothing."""
    from adr_tvm.gradients import (
        batch_norm,
        conv2d,
        dropout,
        epilogue,
        loss,
        lrn,
        pooling,
        reuse,
        shape_ops,
    )

    epilogue.register()
    conv2d.register()
    reuse.register()
    loss.register()
    lrn.register()
    pooling.register()
    batch_norm.register()
    dropout.register()
    shape_ops.register()
