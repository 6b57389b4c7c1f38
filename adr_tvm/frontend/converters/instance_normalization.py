"""InstanceNormalization with its sums taken row by row.

One running float32 sum over a whole 480x640 image, which is what TVM's converter comes to, loses four digits.
"""

from __future__ import annotations

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


class InstanceNormalization(onnx_frontend.OnnxOpConverter):
    """x [N, C, ...], scale [C], shift [C] -> scale (x - mean) / sqrt(variance + epsilon) + shift."""

    @classmethod
    def _impl_v6(cls, bb, inputs, attr, params):
        data, scale, shift = inputs
        rank = len(data.ty.shape)
        channels = [1, -1] + [1] * (rank - 2)
        centred = bb.emit(relax.op.subtract(data, _spatial_mean(data, rank)))
        variance = _spatial_mean(relax.op.square(centred), rank)
        epsilon = relax.const(attr.get("epsilon", 1e-5), data.ty.dtype)
        deviation = relax.op.sqrt(relax.op.add(variance, epsilon))
        scaled = relax.op.multiply(relax.op.divide(centred, deviation), relax.op.reshape(scale, channels))
        return relax.op.add(scaled, relax.op.reshape(shift, channels))


def _spatial_mean(data: relax.Expr, rank: int) -> relax.Expr:
    for axis in range(rank - 1, 1, -1):
        data = relax.op.mean(data, axis=axis, keepdims=True)
    return data
