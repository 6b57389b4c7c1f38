"""Upsample (opsets 7 to 9) by way of Resize; TVM's converter needs a static batch."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from adr_tvm.frontend.converters.resize import resize_asymmetric


class Upsample(onnx_frontend.OnnxOpConverter):
    """x [N, C, ...] -> x with its spatial dimensions multiplied by ``scales``."""

    @classmethod
    def _impl_v7(cls, bb, inputs, attr, params):
        scales = relax.const(np.array(attr["scales"], "float32"))
        return resize_asymmetric(bb, inputs[0], scales, attr, params)

    @classmethod
    def _impl_v9(cls, bb, inputs, attr, params):
        return resize_asymmetric(bb, inputs[0], inputs[1], attr, params)
