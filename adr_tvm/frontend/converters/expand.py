"""Expand to a constant shape; TVM's converter fails where the input has a symbolic dimension."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class Expand(onnx_frontend.OnnxOpConverter):
    """x, shape [rank] int64 -> x broadcast with ``shape`` (a 1 there keeps the dimension of x)."""

    @classmethod
    def _impl_v8(cls, bb, inputs, attr, params):
        data, target = inputs[0], inputs[1]
        if not isinstance(target, tvm.ir.GenericConst) or data.ty.shape is None:
            return onnx_frontend.Expand._impl_v13(bb, inputs, attr, params)
        have, want = list(data.ty.shape.values), target.value.numpy().tolist()
        rank = max(len(have), len(want))
        have, want = [1] * (rank - len(have)) + have, [1] * (rank - len(want)) + want
        return relax.op.broadcast_to(data, [h if w == 1 else w for h, w in zip(have, want, strict=True)])
