"""The layers of a canonical network as a user meets them: name, shapes, work, and why not a candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import is_op, static_shape
from adr_tvm.passes.mark_candidates import Candidate, CandidateRules, find_candidates
from adr_tvm.report.formats import geometry_text, window_text

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product.

    Attributes:
        layer: the ONNX node name.
        op: ``conv2d`` or ``dense``.
        geometry: shapes in words, such as "56x56x64 -> 64, 3x3/1".
        macs: multiply-adds of one image.
        reason: why it must stay dense; empty for a candidate.
    """

    layer: str
    op: str
    geometry: str
    macs: int
    reason: str


def list_layers(mod: tvm.IRModule, rules: CandidateRules) -> list[Layer]:
    """All convolutions and matrix products of ``main``, in network order."""
    return [describe(candidate) for candidate in find_candidates(mod["main"], "main", rules)]


def describe(candidate: Candidate) -> Layer:
    """A layer in words and numbers."""
    geometry = candidate.geometry
    if geometry is not None:
        return Layer(candidate.layer, candidate.kind, geometry_text(geometry), geometry.macs, candidate.reason)
    x, w, y = (static_shape(e) for e in (*candidate.call.args[:2], candidate.call))
    outputs = math.prod(d for d in y[1:] if d)
    if is_op(candidate.call, "relax.matmul"):
        text, inner = f"{_dims(x[1:])} times {_dims(w[1:] if len(w) == len(x) else w)}", x[-1]
    else:
        text, inner = _conv_text(candidate.call, x, w, y)
    return Layer(candidate.layer, candidate.kind, text, outputs * (inner or 1), candidate.reason)


def _conv_text(call: relax.Call, x: Shape, w: Shape, y: Shape) -> tuple[str, int]:
    """Words for a convolution of any layout, and the multiply-adds of one of its outputs."""
    ours = is_op(call, ops.GROUPED_CONV2D)
    data, kernel = ("NHWC", "HWIO") if ours else (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
    out = data if ours else str(call.attrs.out_layout) or data
    attrs = ops.attributes(call) if ours else {"strides": call.attrs.strides, "groups": call.attrs.groups}
    KH, KW, inner = (w[kernel.index(axis)] for axis in "HWI")
    image = _dims(tuple(x[data.index(axis)] for axis in "HWC"))
    channels, strides = y[out.index("C")], tuple(int(s) for s in attrs["strides"])
    text = window_text(f"{image} -> {channels}", (KH or 1, KW or 1), (strides[0], strides[-1]))
    groups = int(attrs["groups"])
    return text + (f", {groups} groups" if groups > 1 else ""), math.prod((KH or 1, KW or 1, inner or 1))


def _dims(shape: Shape) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in shape)
