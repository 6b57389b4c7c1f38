"""Split into one part is the identity; TVM's layout conversion takes for granted that there are several."""

from __future__ import annotations

from tvm.relax.frontend.onnx import onnx_frontend


class Split(onnx_frontend.Split):
    """x -> (x[:a], x[a:b], ...) along an axis; into one part: x."""

    @classmethod
    def _impl_v1(cls, bb, inputs, attr, params):
        if attr["tvm_custom"]["num_outputs"] == 1:
            return inputs[0]
        return super()._impl_v1(bb, inputs, attr, params)

    @classmethod
    def _impl_v13(cls, bb, inputs, attr, params):
        if attr["tvm_custom"]["num_outputs"] == 1:
            return inputs[0]
        return super()._impl_v13(bb, inputs, attr, params)
