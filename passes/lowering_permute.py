"""Transposes that swap two runs of neighbouring axes as calls of a TIR kernel, for a CPU target."""

from __future__ import annotations

import math

from tvm import relax

from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.schedules.permute import permute
from adr_tvm.schedules.register_tile import Isa


def lower_permute(bb: relax.BlockBuilder, call: relax.Call, _isa: Isa) -> relax.Expr | None:
    """The lowered form of ``permute_dims``; None where the first axis moves or more than two runs change places.

    A transpose that moves axes of one entry alone is a reshape.
    """
    shape, rank = static_shape(call.args[0]), len(static_shape(call.args[0]))
    axes = [int(a) for a in call.attrs.axes] if call.attrs.axes is not None else list(range(rank))[::-1]
    x = call.args[0]
    moving = [a for a in axes if shape[a] != 1]
    if moving == sorted(moving):
        return relax.op.reshape(x, call.ty.shape)
    if axes[0] != 0 or None in shape[1:] or str(call.ty.dtype) != "float32":
        return None
    runs = swapped_runs([a for a in axes[1:] if shape[a] != 1])
    if runs is None:
        return None
    outer, R, C, K = (math.prod(shape[a] for a in run) for run in runs)
    batch, size = x.ty.shape[0], outer * R * C * K
    flat = bb.emit(relax.op.reshape(x, relax.ShapeExpr([batch, size])))
    kernel = bb.add_func(permute(outer, R, C, K, shape[0]), "adr_permute")
    y = bb.emit(relax.call_tir(kernel, [flat], tensor_type([batch, size])))
    return relax.op.reshape(y, call.ty.shape)


def swapped_runs(axes: list[int]) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """(axes in front, first run, second run, axes behind) of a permutation that swaps two runs; None if it does not."""
    order = sorted(axes)
    start = next((i for i, (a, b) in enumerate(zip(axes, order, strict=True)) if a != b), len(axes))
    stop = next((i for i in range(len(axes), start, -1) if axes[i - 1] != order[i - 1]), start)
    inside = order[start:stop]
    cut = inside.index(axes[start]) if inside else 0
    if not inside or inside[cut:] + inside[:cut] != axes[start:stop]:
        return None
    return order[:start], inside[:cut], inside[cut:], order[stop:]
