"""Concatenations along the channels: each input goes to its own channels of one tensor.

A convolution that nothing else reads writes there itself; other inputs are copied. The first writer makes the tensor,
the others get it to write to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tvm import relax
from tvm.target import Target

from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.passes.lowering_dense import dense_kernel
from adr_tvm.schedules.concat import copy_channels
from adr_tvm.schedules.dense_conv2d import Destination

RANK = 4


def lower_concat(
    bb: relax.BlockBuilder, call: relax.Call, target: Target, producers: Sequence[relax.Call | None] = ()
) -> relax.Expr | None:
    """The lowered form of a ``concat`` of NHWC tensors along the channels; None where it is another one.

    Args:
        producers: of each input, the ``adr.conv2d`` call that made it, if nothing else reads it.
    """
    call = bb.normalize(call)
    tensors = call.args[0]
    if not isinstance(tensors, relax.Tuple) or not isinstance(call.ty, relax.TensorType):
        return None
    shapes = [static_shape(field) for field in tensors.fields]
    if len(shapes[0]) != RANK or int(call.attrs.axis) % RANK != RANK - 1 or any(None in s[1:] for s in shapes):
        return None
    total = sum(shape[-1] for shape in shapes)
    offsets = accumulate((shape[-1] for shape in shapes), initial=0)
    whole = tensor_type(call.ty.shape, str(call.ty.dtype))
    joined: relax.Expr | None = None
    for field, shape, offset, producer in zip(
        tensors.fields, shapes, offsets, producers or [None] * len(shapes), strict=False
    ):
        if producer is not None:
            kernel, args, _ = dense_kernel(bb, producer, target, Destination(total, offset))
        else:
            func = copy_channels(*shape[1:], total, offset, str(call.ty.dtype))
            kernel, args = bb.add_func(func, "adr_concat"), [field]
        joined = bb.emit(_write(kernel, args, joined, whole))
    return joined


def _write(kernel: Any, args: list[relax.Expr], to: relax.Expr | None, whole: relax.TensorType) -> relax.Call:
    if to is None:
        return relax.call_tir(kernel, args, whole)
    return relax.op.call_tir_inplace(kernel, [*args, to], [len(args)], whole)
