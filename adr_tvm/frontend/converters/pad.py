"""Pad as one ``relax.nn.pad``, which layout passes can read; TVM's converter emits a kernel."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


class Pad(onnx_frontend.Pad):
    """x -> x with entries before and after each axis; below 0 they are cut off."""

    @classmethod
    def _impl_v2(cls, bb, inputs, attr, params):
        pads = [int(p) for p in attr["pads"]]
        rank = len(pads) // 2
        return _padded(bb, inputs[0], pads[:rank], pads[rank:], attr, float(attr.get("value", 0.0)))

    @classmethod
    def _lower_pad(cls, bb, inputs, attr, params, allowed_modes):
        before, after, value = cls._parse_pads_and_axes(inputs, params)
        if attr.get("mode", b"constant").decode() not in allowed_modes:
            raise tvm.error.OpAttributeInvalid(f"mode {attr['mode'].decode()!r}")
        return _padded(bb, inputs[0], [int(p) for p in before], [int(p) for p in after], attr, float(value))


def _padded(bb, x, before, after, attr, value) -> relax.Expr:
    cut = [axis for axis in range(len(before)) if min(before[axis], after[axis]) < 0]
    if cut:
        begin = [max(0, -before[axis]) for axis in cut]
        end = [x.ty.shape[axis] - max(0, -after[axis]) for axis in cut]
        x = bb.emit(relax.op.strided_slice(x, cut, begin, end))
        before, after = [max(0, p) for p in before], [max(0, p) for p in after]
    widths = [p for pair in zip(before, after, strict=True) for p in pair]
    return relax.op.nn.pad(x, widths, MODES[attr.get("mode", b"constant").decode()], value)
