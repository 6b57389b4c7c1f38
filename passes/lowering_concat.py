"""Concatenations along the last axis as calls of a copying kernel."""

from __future__ import annotations

import math

from tvm import relax

from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.schedules.concat import concat


def lower_concat(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr | None:
    """The lowered form of a ``concat`` of NHWC tensors along the channels; None where it is another one."""
    call = bb.normalize(call)
    tensors = call.args[0]
    if not isinstance(tensors, relax.Tuple) or not isinstance(call.ty, relax.TensorType):
        return None
    shapes = [static_shape(field) for field in tensors.fields]
    rank = len(shapes[0])
    if rank < 3 or int(call.attrs.axis) % rank != rank - 1 or any(None in shape[1:] for shape in shapes):
        return None
    batch, rows = call.ty.shape[0], math.prod(shapes[0][1:-1])
    flat = [
        bb.emit(relax.op.reshape(field, relax.ShapeExpr([batch, rows, shape[-1]])))
        for field, shape in zip(tensors.fields, shapes, strict=True)
    ]
    kernel = bb.add_func(concat(rows, tuple(shape[-1] for shape in shapes), str(call.ty.dtype)), "adr_concat")
    total = sum(shape[-1] for shape in shapes)
    joined = bb.emit(relax.call_tir(kernel, flat, tensor_type([batch, rows, total], str(call.ty.dtype))))
    return relax.op.reshape(joined, call.ty.shape)
