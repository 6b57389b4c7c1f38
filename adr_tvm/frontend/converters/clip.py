"""Clip between constants as one ``relax.clip``; TVM's converter makes four calls, two of them opaque."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class Clip(onnx_frontend.OnnxOpConverter):
    """x -> min(max(x, low), high); float32 with constant bounds, TVM's converter otherwise."""

    @classmethod
    def _impl_v6(cls, bb, inputs, attr, params):
        return relax.op.clip(inputs[0], attr.get("min", _LIMITS.min), attr.get("max", _LIMITS.max))

    @classmethod
    def _impl_v11(cls, bb, inputs, attr, params):
        bounds = [inputs[1], inputs[2]]
        constant = all(b is None or isinstance(b, tvm.ir.GenericConst) for b in bounds)
        if str(inputs[0].ty.dtype) != "float32" or not constant:
            return onnx_frontend.Clip._impl_v13(bb, inputs, attr, params)
        low, high = (None if b is None else float(b.value.numpy().reshape(())) for b in bounds)
        return relax.op.clip(inputs[0], -np.inf if low is None else low, np.inf if high is None else high)


_LIMITS = np.finfo(np.float32)
