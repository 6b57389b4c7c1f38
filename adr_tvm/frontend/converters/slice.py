"""Slice with attributes (opsets up to 9), which TVM's converter does not know."""

from __future__ import annotations

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class Slice(onnx_frontend.OnnxOpConverter):
    """x -> x[starts:ends] along ``axes``."""

    @classmethod
    def _impl_v1(cls, bb, inputs, attr, params):
        starts, ends = attr["starts"], attr["ends"]
        axes = attr.get("axes", range(len(starts)))
        return relax.op.strided_slice(inputs[0], list(axes), list(starts), list(ends), assume_inbound=False)

    @classmethod
    def _impl_v10(cls, bb, inputs, attr, params):
        return onnx_frontend.Slice._impl_v13(bb, inputs, attr, params)
