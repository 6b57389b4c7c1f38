"""Dropout is the identity at inference; TVM's converter keeps a call that later passes would have to know."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class Dropout(onnx_frontend.OnnxOpConverter):
    """x -> x."""

    @classmethod
    def _impl_v7(cls, bb, inputs, attr, params):
        return inputs[0]


class TrainingDropout(onnx_frontend.OnnxOpConverter):
    """x -> ``adr.dropout`` of x with the node's ratio (default 0.5), whatever its ``training_mode`` says.

    The seed is 0 until ``SeedDropout`` makes it an input.
    """

    @classmethod
    def _impl_v7(cls, bb, inputs, attr, params):
        return _dropout(inputs[0], float(attr.get("ratio", 0.5)))

    @classmethod
    def _impl_v12(cls, bb, inputs, attr, params):
        ratio = inputs[1] if len(inputs) > 1 else None
        if ratio is None:
            return _dropout(inputs[0], 0.5)
        if not isinstance(ratio, tvm.ir.GenericConst):
            raise NotImplementedError("a ratio that is not constant")
        return _dropout(inputs[0], float(ratio.value.numpy().reshape(())))


def _dropout(x: relax.Expr, rate: float) -> relax.Expr:
    from adr_tvm.gradients import dropout

    dropout.register()
    try:
        return dropout.dropout(x, relax.const(np.zeros(1, np.int64), "int64"), rate)
    except ValueError as error:
        raise NotImplementedError(str(error)) from None
