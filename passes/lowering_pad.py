"""Padding and strided slices of NHWC tensors as calls of a TIR kernel, for a CPU target."""

from __future__ import annotations

import dataclasses
import math

from tvm import relax, tirx

from adr_tvm._tvm import is_op, static_shape, tensor_type
from adr_tvm.passes.lowering_norms import Visit
from adr_tvm.passes.norm_patterns import Chains, is_image
from adr_tvm.schedules.pad2d import Window, pad2d


def lower_pad(bb: relax.BlockBuilder, call: relax.Call, chains: Chains, visit: Visit) -> relax.Expr | None:
    """The lowered form of ``nn.pad``, with slices before it; None where it is another than of an image's pixels.

    Args:
        call: as it was before the pass.
        visit: gives expressions from then as they are in the new function.
    """
    x, window = _sliced(call.args[0], chains)
    widths, mode = [int(v) for v in call.attrs.pad_width], str(call.attrs.pad_mode)
    if window is None or len(widths) != 8 or any(widths[:2]) or min(widths) < 0:
        return None
    before, after = (widths[2], widths[4], widths[6]), (widths[3], widths[5], widths[7])
    if mode not in ("constant", "reflect", "replicate"):
        return None
    if mode != "constant" and (before[2] or after[2]):
        return None
    if mode == "reflect" and max(*before, *after) >= min(window.size):
        return None
    window = dataclasses.replace(window, before=before, after=after, mode=mode, value=float(call.attrs.pad_value))
    return _copied(bb, visit(x), window, call)


def lower_slice(bb: relax.BlockBuilder, call: relax.Call, chains: Chains, visit: Visit) -> relax.Expr | None:
    """The lowered form of ``strided_slice`` along rows and columns; None where it is another."""
    x, window = _sliced(call, chains)
    return None if window is None else _copied(bb, visit(x), window, call)


def _copied(bb: relax.BlockBuilder, x: relax.Expr, w: Window, call: relax.Call) -> relax.Expr | None:
    batch, out = x.ty.shape[0], static_shape(call)[1:]
    if out != w.out:
        return None
    flat = bb.emit(relax.op.reshape(x, relax.ShapeExpr([batch, w.H * w.W * w.C])))
    kernel = bb.add_func(pad2d(w, static_shape(x)[0]), "adr_pad2d")
    y = bb.emit(relax.call_tir(kernel, [flat], tensor_type([batch, math.prod(w.out)])))
    return relax.op.reshape(y, call.ty.shape)


def _sliced(expr: relax.Expr, chains: Chains) -> tuple[relax.Expr, Window | None]:
    """What a chain of slices starts from, and what they leave of it; None where that is no NHWC float32 image."""
    slices: list[relax.Call] = []
    while is_op(call := chains.value(expr), "relax.strided_slice"):
        slices, expr = [call, *slices], call.args[0]
    if not is_image(expr):
        return expr, None
    _, H, W, C = static_shape(expr)
    start, step, size = [0, 0], [1, 1], [H, W]
    for call in slices:
        found = _bounds(call)
        if found is None or not set(found) <= {1, 2} or not is_image(call):
            return expr, None
        for axis, (begin, stride) in found.items():
            i = axis - 1
            begin = max(0, begin + size[i]) if begin < 0 else begin
            start[i], step[i], size[i] = start[i] + begin * step[i], step[i] * stride, static_shape(call)[axis]
    if min(size) < 1:
        return expr, None
    return expr, Window(H, W, C, (start[0], start[1]), (step[0], step[1]), (size[0], size[1]))


def _bounds(call: relax.Call) -> dict[int, tuple[int, int]] | None:
    """(begin, stride > 0) by axis; None where they are not constant."""
    given = [call.args[1], call.args[2], *call.args[4:5]]
    if not all(isinstance(v, relax.Tuple) and all(isinstance(f, tirx.IntImm) for f in v.fields) for v in given):
        return None
    axes, begins, *rest = ([int(f) for f in v.fields] for v in given)
    strides = rest[0] if rest else [1] * len(axes)
    if min(strides) < 1:
        return None
    return {axis % 4: pair for axis, pair in zip(axes, zip(begins, strides, strict=True), strict=True)}
