"""Resize: opset 10, and empty tensors for inputs that are absent, which TVM's converter does not know."""

from __future__ import annotations

import math

import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

_IGNORED = {"antialias": 0, "axes": None, "keep_aspect_ratio_policy": b"stretch"}
"""Attributes that TVM's converter does not look at, with the value for which that is right."""


class Resize(onnx_frontend.OnnxOpConverter):
    """x [N, C, ...] -> x with its spatial dimensions resized by ``scales`` or to ``sizes``."""

    @classmethod
    def _impl_v10(cls, bb, inputs, attr, params):
        return resize_asymmetric(bb, inputs[0], inputs[1], attr, params)

    @classmethod
    def _impl_v11(cls, bb, inputs, attr, params):
        for name, value in _IGNORED.items():
            if attr.get(name, value) != value:
                raise NotImplementedError(f"attribute {name}")
        present = onnx_frontend.onnx_input([None if _is_empty(value) else value for value in inputs])
        _check_scales(present[0], present[2])
        return onnx_frontend.Resize._impl_v18(bb, present, attr, params)


def resize_asymmetric(bb, data, scales, attr, params) -> relax.Expr:
    """Resize as it was up to opset 10, Upsample included: output pixel i reads input pixel i / scale."""
    attr = {
        "mode": b"linear" if attr.get("mode", b"nearest") in (b"linear", b"bilinear") else b"nearest",
        "coordinate_transformation_mode": b"asymmetric",
        "nearest_mode": b"floor",
    }
    _check_scales(data, scales)
    inputs = onnx_frontend.onnx_input([data, None, scales])
    return onnx_frontend.Resize._impl_v18(bb, inputs, attr, params)


def _check_scales(data: relax.Expr, scales: relax.Expr | None) -> None:
    """TVM resizes by the ratio of the sizes; ONNX by the scale, which differs where the size is rounded."""
    if scales is None:
        return
    if not isinstance(scales, tvm.ir.GenericConst):
        raise NotImplementedError("scales that are not constant")
    for dim, scale in zip(data.ty.shape.values, scales.value.numpy().tolist(), strict=True):
        if isinstance(dim, tvm.tirx.IntImm):
            size = int(dim) * scale
            if abs(size - round(size)) > 1e-4 * size:
                raise NotImplementedError(f"a scale of {scale:g} of {int(dim)} pixels; give sizes instead")
        elif scale != 1:
            raise NotImplementedError(f"a scale of {scale:g} of a dimension that is not fixed")


def _is_empty(value: relax.Expr | None) -> bool:
    return isinstance(value, tvm.ir.GenericConst) and math.prod(value.value.shape) == 0
