"""Gradients of maxima and minima over axes: shared evenly by the entries that have it (as torch's ``amax``)."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.relax import op

from adr_tvm._tvm import static_shape
from adr_tvm.gradients.registration import register_gradient


def _extremum(var: relax.Var, call: relax.Call, dy: relax.Expr, bb: Any) -> list[relax.Expr]:
    x, dims = call.args[0], list(call.args[0].ty.shape)
    rank = len(dims)
    axes = range(rank) if call.attrs.axis is None else [int(axis) % rank for axis in call.attrs.axis]
    kept = relax.ShapeExpr([1 if axis in axes else dim for axis, dim in enumerate(dims)])
    y, g = (bb.emit(op.reshape(tensor, kept)) for tensor in (var, dy))
    hits = bb.emit(op.astype(op.equal(x, y), str(x.ty.dtype)))
    count = bb.emit(op.sum(hits, list(axes), keepdims=True))
    return [op.multiply(hits, op.divide(g, count))]


def register() -> None:
    """Register the gradients; once per process, later calls change nothing."""
    register_gradient("relax.max", _extremum, _refusal)
    register_gradient("relax.min", _extremum, _refusal)


def _refusal(call: relax.Call) -> str | None:
    return None if len(static_shape(call.args[0])) else "of a scalar"
