"""Gradients of operators that only move entries: flatten, squeeze, pad, strided_slice, stack.

TVM has those of reshape, permute_dims, concat, split, expand_dims and broadcast_to.
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm._tvm import static_shape
from adr_tvm.gradients.registration import register_gradient


def _reshaped(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    return [relax.op.reshape(dy, call.args[0].ty.shape)]


def _pad_refusal(call: relax.Call) -> str | None:
    mode = str(call.attrs.pad_mode)
    return None if mode == "constant" else f"pads with mode {mode}; only constant padding has one"


def _pad(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    refusal = _pad_refusal(call)
    assert refusal is None, f"{call.op.name}: {refusal}"
    width = [int(v) for v in call.attrs.pad_width]
    padded = [axis for axis in range(len(width) // 2) if width[2 * axis] or width[2 * axis + 1]]
    if not padded:
        return [dy]
    shape = call.args[0].ty.shape
    begin = [width[2 * axis] for axis in padded]
    end = [width[2 * axis] + shape[axis] for axis in padded]
    return [relax.op.strided_slice(dy, padded, begin, end)]


def _slices(call: relax.Call) -> list[tuple[int, int, int, int]] | None:
    """(axis, begin, entries, step) of a strided_slice; None where they are not fixed or run backwards."""
    parts = []
    for arg in call.args[1:]:
        values = [field.value if hasattr(field, "value") else field for field in arg.fields]
        if not all(isinstance(v, int | tvm.tirx.IntImm) for v in values):
            return None
        parts.append([int(v) for v in values])
    axes, begin, _, *more = parts
    steps = more[0] if more else [1] * len(axes)
    shape, out = static_shape(call.args[0]), static_shape(call)
    found = []
    for axis, first, step in zip(axes, begin, steps, strict=True):
        axis %= len(shape)
        if shape[axis] is None or out[axis] is None or step < 1:
            return None
        first = max(0, first + shape[axis] if first < 0 else first)
        found.append((axis, first, out[axis], step))
    return found


def _slice_refusal(call: relax.Call) -> str | None:
    return None if _slices(call) is not None else "with bounds or sizes that are not fixed, or a negative step"


def _slice(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    slices = _slices(call)
    assert slices is not None, f"{call.op.name}: {_slice_refusal(call)}"
    shape = static_shape(call.args[0])
    for axis, first, count, step in slices:
        if step > 1:  # zeros between the entries: [n] as [n, 1], padded to [n, step]
            dims = list(dy.ty.shape)
            dy = bb.emit(relax.op.expand_dims(dy, axis + 1))
            dy = bb.emit(relax.op.nn.pad(dy, _widths(len(dims) + 1, axis + 1, 0, step - 1)))
            dy = bb.emit(relax.op.reshape(dy, relax.ShapeExpr([*dims[:axis], count * step, *dims[axis + 1 :]])))
        after = shape[axis] - first - count * step
        if first or after > 0:
            dy = bb.emit(relax.op.nn.pad(dy, _widths(len(shape), axis, first, max(0, after))))
        if after < 0:
            dy = bb.emit(relax.op.strided_slice(dy, [axis], [0], [shape[axis]]))
    return [*[dy], *(relax.op.grad.no_grad(arg) for arg in call.args[1:])]


def _widths(rank: int, axis: int, before: int, after: int) -> list[int]:
    widths = [0] * (2 * rank)
    widths[2 * axis], widths[2 * axis + 1] = before, after
    return widths


def _stack(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    fields = call.args[0].ty.fields
    rank = len(fields[0].shape) + 1
    axis = (0 if call.attrs.axis is None else int(call.attrs.axis)) % rank
    parts = [bb.emit(relax.op.strided_slice(dy, [axis], [i], [i + 1])) for i in range(len(fields))]
    return [relax.Tuple([bb.emit(relax.op.reshape(part, fields[0].shape)) for part in parts])]


def register() -> None:
    """Register the gradients; once per process, later calls change nothing."""
    register_gradient("relax.flatten", _reshaped)
    register_gradient("relax.squeeze", _reshaped)
    register_gradient("relax.nn.pad", _pad, _pad_refusal)
    register_gradient("relax.strided_slice", _slice, _slice_refusal)
    register_gradient("relax.stack", _stack)
