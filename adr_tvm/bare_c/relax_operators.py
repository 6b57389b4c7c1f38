"""What each Relax operator is in the graph of bare C.

A converter takes a call and says kind, constants and attributes; ``Unsupported`` says why there is no C code for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import constant, static_shape
from adr_tvm.activation import Activation
from adr_tvm.bare_c.graph import Window
from adr_tvm.passes.fuse_epilogue import activation_after

UNARY = {"relax.sigmoid": "sigmoid", "relax.tanh": "tanh", "relax.exp": "exp", "relax.sqrt": "sqrt", "relax.abs": "abs"}
BINARY = {"relax.add": "add", "relax.subtract": "subtract", "relax.multiply": "multiply", "relax.divide": "divide",
          "relax.maximum": "maximum", "relax.minimum": "minimum"}  # fmt: skip


class Unsupported(Exception):
    """There is no C code for a call; the message says why."""


@dataclass(frozen=True, eq=False)
class Converted:
    """An operator of the graph without its tensors; ``inputs`` are expressions.

    Attributes:
        kind, constants, attributes: as of ``graph.Operator``.
        inputs: activations that it reads.
        name: the layer's, else empty.
    """

    kind: str
    inputs: tuple[relax.Expr, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


def _weights(call: relax.Call, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    found = {part: constant(arg) for part, arg in zip(parts, call.args[1:], strict=False)}
    if any(array is None for array in found.values()):
        raise Unsupported("weights are not constant")
    return {part: array for part, array in found.items() if array is not None}


def _layer(call: relax.Call) -> Converted:
    """``adr.conv2d``, ``adr.conv2d_add``, ``adr.grouped_conv2d``, ``adr.dense`` and those with reuse."""
    kind = call.op.name.removeprefix("relax.adr.")
    attributes: dict[str, Any] = {"geometry": ops.geometry_of(call), "activation": ops.activation_of(call)}
    inputs = [call.args[0]]
    parts: tuple[str, ...] = ("weight", "bias")
    if kind == "conv2d_add":
        kind, inputs = "conv2d", [call.args[0], call.args[3]]
    if kind == "grouped_conv2d":
        attributes["groups"] = ops.groups_of(call)
    if call.op.name in ops.REUSE_OPS:
        attributes["setting"] = ops.setting_of(call)
        parts = ("weight", "bias", "planes", "thresholds")
    return Converted(kind, tuple(inputs), _weights(call, parts), attributes, ops.layer_name(call))


def _pool(call: relax.Call) -> Converted:
    a = call.attrs
    if str(a.layout) != "NHWC":
        raise Unsupported(f"layout {a.layout}")
    if a.ceil_mode and not _fits(call):
        raise Unsupported("ceil_mode where the last window is not whole")
    size, strides, dilation = ((int(v[0]), int(v[1])) for v in (a.pool_size, a.strides, a.dilation))
    top, left, bottom, right = (int(v) for v in a.padding)
    window = Window(size, strides, (top, left, bottom, right), dilation)
    kind = call.op.name.removeprefix("relax.nn.")
    return Converted(kind, (call.args[0],), {}, {"window": window, "count_pads": bool(a.count_include_pad)})


def _fits(call: relax.Call) -> bool:
    """Whether the windows fill the padded image, so that rounding up changes nothing."""
    a, x = call.attrs, static_shape(call.args[0])
    for axis in (0, 1):
        span = int(a.dilation[axis]) * (int(a.pool_size[axis]) - 1) + 1
        if (x[axis + 1] + int(a.padding[axis]) + int(a.padding[axis + 2]) - span) % int(a.strides[axis]):
            return False
    return True


def _lrn(call: relax.Call) -> Converted:
    a = call.attrs
    before, after = int(a["before"]), int(a["after"])
    factor = float(a["alpha"]) / (before + 1 + after)
    values = {"before": before, "after": after, "factor": factor, "beta": float(a["beta"]), "bias": float(a["bias"])}
    return Converted("lrn", (call.args[0],), {}, values)


def _softmax(call: relax.Call) -> Converted:
    axis, rank = int(call.attrs.axis), len(call.args[0].ty.shape)
    if axis not in (-1, rank - 1):
        raise Unsupported(f"axis {axis} is not the last")
    return Converted(call.op.name.removeprefix("relax.nn."), (call.args[0],))


def _activation(call: relax.Call) -> Converted:
    activation = activation_after(call)
    if activation is None:
        raise Unsupported("limits are not constant")
    return Converted("unary", (call.args[0],), {}, {"function": "activation", "activation": activation})


def _unary(call: relax.Call) -> Converted:
    return Converted("unary", (call.args[0],), {}, {"function": UNARY[call.op.name], "activation": Activation()})


def _binary(call: relax.Call) -> Converted:
    a, b = (constant(arg) for arg in call.args)
    attributes: dict[str, Any] = {"function": BINARY[call.op.name], "swapped": False}
    if a is None and b is None:
        if static_shape(call.args[0])[1:] != static_shape(call.args[1])[1:]:
            raise Unsupported("tensors of different shapes")
        return Converted("binary", tuple(call.args), {}, attributes)
    operand, x = (b, call.args[0]) if b is not None else (a, call.args[1])
    assert operand is not None
    attributes["swapped"] = b is None
    return Converted("binary", (x,), {"operand": _operand(operand, static_shape(x))}, attributes)


def _operand(operand: np.ndarray, shape: tuple[Any, ...]) -> np.ndarray:
    """A constant operand as float32 [1], [C] or [all entries] of a tensor [1, ..., C]."""
    found = operand.shape
    while found and found[0] == 1 and len(found) >= len(shape):
        found = found[1:]
    per_channel = bool(operand.shape) and operand.size == operand.shape[-1] == shape[-1]
    if operand.size == 1 or per_channel or found == tuple(shape[1:]):
        return operand.astype(np.float32).reshape(-1)
    raise Unsupported(f"an operand of shape {list(operand.shape)}")


def _mean(call: relax.Call) -> Converted:
    rank = len(call.args[0].ty.shape)
    axes = sorted(int(axis) % rank for axis in (call.attrs.axis or range(rank)))
    if axes != list(range(1, rank - 1)):
        raise Unsupported(f"axes {axes}")
    return Converted("mean", (call.args[0],))


def _concat(call: relax.Call) -> Converted:
    if not isinstance(call.args[0], relax.Tuple):
        raise Unsupported("of a tuple that is not known")
    fields = tuple(call.args[0].fields)
    axis = int(call.attrs.axis) % len(fields[0].ty.shape)
    if axis == 0:
        raise Unsupported("along the batch")
    return Converted("concat", fields, {}, {"axis": axis})


def _strided_slice(call: relax.Call) -> Converted:
    x, out = static_shape(call.args[0]), static_shape(call)
    axes, starts, _, *steps = (_ints(arg) for arg in call.args[1:])
    begin, strides = [0] * len(x), [1] * len(x)
    for i, axis in enumerate(axes):
        step = steps[0][i] if steps else 1
        if axis % len(x) == 0 or step < 1 or x[axis] is None:
            raise Unsupported("along the batch, or backwards")
        start = starts[i] + x[axis] if starts[i] < 0 else starts[i]
        begin[axis], strides[axis] = min(max(start, 0), x[axis]), step
    if None in out[1:]:
        raise Unsupported("a size that is not fixed")
    return Converted("strided_slice", (call.args[0],), {}, {"begin": tuple(begin), "strides": tuple(strides)})


def _ints(expr: relax.Expr) -> list[int]:
    try:
        return [int(field.value) for field in expr.fields]
    except AttributeError:
        raise Unsupported("limits are not constant") from None


def _pad(call: relax.Call) -> Converted:
    a = call.attrs
    widths = [int(v) for v in a.pad_width]
    if str(a.pad_mode) != "constant":
        raise Unsupported(f"mode {a.pad_mode}")
    if min(widths) < 0 or widths[0] or widths[1]:
        raise Unsupported("negative, or of the batch")
    return Converted("pad", (call.args[0],), {}, {"before": tuple(widths[::2]), "value": float(a.pad_value)})


def _transpose(call: relax.Call) -> Converted:
    rank = len(call.args[0].ty.shape)
    axes = tuple(int(v) for v in call.attrs.axes) if call.attrs.axes is not None else tuple(range(rank))[::-1]
    if axes[0] != 0:
        raise Unsupported("of the batch")
    shape = static_shape(call.args[0])
    moved = [axis for axis in axes if shape[axis] != 1]
    kind = "view" if moved == sorted(moved) else "transpose"
    return Converted(kind, (call.args[0],), {}, {} if kind == "view" else {"axes": axes})


def _view(call: relax.Call) -> Converted:
    return Converted("view", (call.args[0],))


CONVERTERS: dict[str, Callable[[relax.Call], Converted]] = {
    **dict.fromkeys((*ops.DENSE_OPS, ops.CONV2D_ADD, ops.GROUPED_CONV2D, *ops.REUSE_OPS), _layer),
    **dict.fromkeys(("relax.nn.max_pool2d", "relax.nn.avg_pool2d"), _pool),
    "relax.adr.lrn": _lrn,
    **dict.fromkeys(("relax.nn.softmax", "relax.nn.log_softmax"), _softmax),
    **dict.fromkeys(("relax.nn.relu", "relax.clip", "relax.nn.leakyrelu"), _activation),
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "relax.mean": _mean,
    "relax.concat": _concat,
    "relax.strided_slice": _strided_slice,
    "relax.nn.pad": _pad,
    "relax.permute_dims": _transpose,
    **dict.fromkeys(("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims"), _view),
}
