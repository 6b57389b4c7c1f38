"""ConstantOfShape with a constant shape is a constant; TVM's converter broadcasts a scalar at run time."""

from __future__ import annotations

import numpy as np
import tvm
from onnx import numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class ConstantOfShape(onnx_frontend.OnnxOpConverter):
    """shape [rank] int64 -> tensor of that shape filled with ``value`` (default float32 0)."""

    @classmethod
    def _impl_v9(cls, bb, inputs, attr, params):
        shape = inputs[0]
        if not isinstance(shape, tvm.ir.GenericConst):
            return onnx_frontend.ConstantOfShape._impl_v9(bb, inputs, attr, params)
        fill = numpy_helper.to_array(attr["value"]).ravel()[0] if "value" in attr else np.float32(0)
        return relax.const(np.full(shape.value.numpy().tolist(), fill))
