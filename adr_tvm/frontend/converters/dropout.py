"""Dropout is the identity at inference; TVM's converter keeps a call that later passes would have to know."""

from __future__ import annotations

from tvm.relax.frontend.onnx import onnx_frontend


class Dropout(onnx_frontend.OnnxOpConverter):
    """x -> x."""

    @classmethod
    def _impl_v7(cls, bb, inputs, attr, params):
        return inputs[0]
