"""Sum as a chain of additions, left to right; TVM's converter stacks the inputs and reduces."""

from __future__ import annotations

import functools

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class Sum(onnx_frontend.OnnxOpConverter):
    """Any number of tensors that broadcast together -> their sum."""

    @classmethod
    def _impl_v1(cls, bb, inputs, attr, params):
        return functools.reduce(relax.op.add, inputs)
