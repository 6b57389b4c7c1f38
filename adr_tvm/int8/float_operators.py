"""The operators of bare C's graph in NumPy, fp32 with sums in float64, on batches: what calibration and the parts of an
int8 network that stay fp32 run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from adr_tvm.bare_c.graph import Graph, Operator, Window
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.vectors import im2col_blocks

Arrays = Sequence[np.ndarray]


def pool_geometry(window: Window, shape: Sequence[int]) -> ConvGeometry:
    """A pooling window over [batch, H, W, C] as a convolution's."""
    (KH, KW), (_, H, W, C) = window.size, shape
    return ConvGeometry(H, W, C, KH, KW, C, window.strides, window.padding, window.dilation)


def group_geometry(geometry: ConvGeometry, groups: int, channels: int) -> ConvGeometry:
    """All groups of a grouped convolution as one window over all channels."""
    g = geometry
    return ConvGeometry(g.H, g.W, channels, g.KH, g.KW, g.M * groups, g.strides, g.padding, g.dilation)


def windows(x: np.ndarray, g: ConvGeometry, pad: float = 0.0) -> np.ndarray:
    """[B, OH, OW, C, KH * KW] of x [B, H, W, C], ``pad`` outside."""
    top, left, bottom, right = g.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=x.dtype.type(pad))
    whole = replace(g, H=g.H + top + bottom, W=g.W + left + right, padding=(0, 0, 0, 0))
    rows = np.concatenate(list(im2col_blocks(padded, whole)))
    return rows.reshape(len(x), g.OH, g.OW, g.C, g.KH * g.KW)


def _conv2d(operator: Operator, inputs: Arrays) -> np.ndarray:
    g, w = operator.attributes["geometry"], operator.constants["weight"]
    x = inputs[0].reshape(-1, g.H, g.W, g.C)
    matrix = w.reshape(g.KH, g.KW, g.C, g.M).transpose(2, 0, 1, 3).reshape(g.K, g.M)
    rows = np.concatenate([block @ matrix for block in im2col_blocks(x, g)])
    y = rows.reshape(len(x), g.OH, g.OW, g.M) + operator.constants["bias"]
    if len(inputs) > 1:
        y = y + inputs[1].reshape(y.shape)
    return operator.attributes["activation"].apply(y)


def _grouped(operator: Operator, inputs: Arrays) -> np.ndarray:
    x, groups = inputs[0], operator.attributes["groups"]
    g, w = operator.attributes["geometry"], operator.constants["weight"]
    taps = windows(x, group_geometry(g, groups, x.shape[3]))
    taps = taps.reshape(*taps.shape[:3], groups, -1, taps.shape[4])
    matrix = w.reshape(g.KH * g.KW, -1, groups, w.shape[3] // groups)
    y = np.einsum("bhwgct,tcgm->bhwgm", taps, matrix, optimize=True)
    y = y.reshape(*y.shape[:3], -1) + operator.constants["bias"]
    return operator.attributes["activation"].apply(y.astype(np.float32))


def _max_pool(operator: Operator, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    return windows(x, pool_geometry(operator.attributes["window"], x.shape), -np.inf).max(axis=-1)


def _average_pool(operator: Operator, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    g = pool_geometry(operator.attributes["window"], x.shape)
    sums = windows(x, g).sum(axis=-1)
    if operator.attributes["count_pads"]:
        return sums / np.float32(g.KH * g.KW)
    return sums / windows(np.ones((1, g.H, g.W, g.C), np.float32), g).sum(axis=-1)


def _lrn(operator: Operator, inputs: Arrays) -> np.ndarray:
    a, x = operator.attributes, inputs[0]
    padded = np.pad(np.square(x), [(0, 0)] * (x.ndim - 1) + [(a["before"], a["after"])])
    sums = np.lib.stride_tricks.sliding_window_view(padded, a["before"] + 1 + a["after"], axis=-1).sum(axis=-1)
    return x * (a["bias"] + a["factor"] * sums) ** -a["beta"]


def _softmax(operator: Operator, inputs: Arrays) -> np.ndarray:
    shifted = inputs[0] - inputs[0].max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(total) if operator.kind == "log_softmax" else np.exp(shifted) / total


def _unary(operator: Operator, inputs: Arrays) -> np.ndarray:
    function, x = operator.attributes["function"], inputs[0]
    if function == "activation":
        return operator.attributes["activation"].apply(x)
    if function == "sigmoid":
        return 1 / (1 + np.exp(-x))
    return getattr(np, function)(x)


def _binary(operator: Operator, inputs: Arrays) -> np.ndarray:
    a = inputs[0]
    if len(inputs) > 1:
        b = inputs[1]
    else:
        b = operator.constants["operand"]
        b = b.reshape(a.shape[1:]) if b.size == a[0].size and b.size != a.shape[-1] else b
    if operator.attributes.get("swapped"):
        a, b = b, a
    return getattr(np, operator.attributes["function"])(a, b)


def _slice(operator: Operator, inputs: Arrays, shape: Sequence[int]) -> np.ndarray:
    a = operator.attributes
    picked = [
        slice(begin, begin + step * (size - 1) + 1, step)
        for begin, step, size in zip(a["begin"], a["strides"], shape, strict=True)
    ]
    return inputs[0][(slice(None), *picked[1:])]


def _pad(operator: Operator, inputs: Arrays, shape: Sequence[int]) -> np.ndarray:
    x, before = inputs[0], operator.attributes["before"]
    widths = [(0, 0)] + [(b, n - b - m) for b, n, m in zip(before[1:], shape[1:], x.shape[1:], strict=True)]
    return np.pad(x, widths, constant_values=x.dtype.type(operator.attributes["value"]))


COMPUTED: dict[str, Callable[[Operator, Arrays], np.ndarray]] = {
    **dict.fromkeys(("conv2d", "dense", "reuse_conv2d", "reuse_dense"), _conv2d),
    "grouped_conv2d": _grouped,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "lrn": _lrn,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "unary": _unary,
    "binary": _binary,
    "mean": lambda _, inputs: inputs[0].mean(axis=tuple(range(1, inputs[0].ndim - 1))),
}


def _joined(operator: Operator, x: np.ndarray, shape: Sequence[int], before: np.ndarray | None) -> np.ndarray:
    axis, start = operator.attributes["axis"], operator.attributes["start"]
    y = np.zeros((len(x), *shape[1:]), x.dtype) if before is None else before.copy()
    y[(slice(None),) * axis + (slice(start, start + x.shape[axis]),)] = x
    return y


def moved(
    operator: Operator, inputs: Arrays, shape: Sequence[int], before: np.ndarray | None = None
) -> np.ndarray | None:
    """Result of an operator that only moves entries, of any dtype, by the shape of a sample; None for others.

    Args:
        before: what the output held before, where parts of it are written one by one.
    """
    if operator.kind == "concat_part":
        return _joined(operator, inputs[0], shape, before)
    if operator.kind == "strided_slice":
        return _slice(operator, inputs, shape)
    if operator.kind == "pad":
        return _pad(operator, inputs, shape)
    if operator.kind == "transpose":
        return inputs[0].transpose(operator.attributes["axes"])
    return inputs[0] if operator.kind == "view" else None


def run_operator(graph: Graph, operator: Operator, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Float result [B, ...] of one operator on the tensors so far, by name; reuse is left out."""
    shape, inputs = graph.tensors[operator.output].shape, [values[name] for name in operator.inputs]
    y = moved(operator, inputs, shape, values.get(operator.output))
    if y is None:
        y = COMPUTED[operator.kind](operator, inputs)
    return y.reshape(len(inputs[0]), *shape[1:]).astype(np.float32)
