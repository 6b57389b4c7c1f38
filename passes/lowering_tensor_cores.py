"""Products on tensor cores: which kernel, and weights in its layout, for the lowering of CUDA targets.

Calls carry a ``precision`` (``LowerPrecision``); their weights are rounded to it already.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx

from adr_tvm import ops
from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.lowering_dense import prepared
from adr_tvm.precision import PRECISIONS, Precision
from adr_tvm.schedules.cuda.tensor_gemm import packed_channel, padded_k, padded_m, tensor_gemm, tensor_gemm_of_rows
from adr_tvm.schedules.cuda.tensor_tile import TensorTile, tensor_tile
from adr_tvm.schedules.cuda.tuned_tile import tensor_gemm_tile
from adr_tvm.schedules.cuda.unit_gather import whole_units
from adr_tvm.schedules.packing import te_lengthen

Weights = tuple[relax.Expr, relax.Expr]


def dense_on_tensor_cores(
    bb: relax.BlockBuilder, call: relax.Call, batch: int | None, residual: bool
) -> tuple[tirx.PrimFunc, Weights]:
    """Kernel and packed weights of a dense call on some images; None: it is known only then."""
    g, precision = ops.geometry_of(call), _precision(call)
    tile = tensor_gemm_tile(g, batch, precision)
    return tensor_gemm(g, ops.activation_of(call), tile, precision, residual), _packed(bb, call, tile)


def rows_on_tensor_cores(bb: relax.BlockBuilder, call: relax.Call, batch: int | None) -> tuple[tirx.PrimFunc, Weights]:
    """The same for a list out of the rows of some images, of a call that reuses."""
    g, precision, setting = ops.geometry_of(call), _precision(call), ops.setting_of(call)
    tile = tensor_gemm_tile(g, batch, precision, setting)
    kernel = tensor_gemm_of_rows(g, ops.activation_of(call), tile, precision, setting)
    return kernel, _packed(bb, call, tile)


def input_gradient_on_tensor_cores(
    bb: relax.BlockBuilder, turned: ConvGeometry, w: relax.Expr, rows: int
) -> tuple[tirx.PrimFunc, Weights]:
    """The kernel of dX as a convolution of dZ, and its weights: those of the layer [KH, KW, C, M] in 16 bits, turned.

    Args:
        turned: that convolution: it has M channels and makes C.
        rows: of dX.
    """
    precision = precision_of(w)
    assert precision is not None
    tile = tensor_tile(rows, turned.M, whole_units(turned, precision.storage))
    K, C, M = turned.K, turned.M, turned.C
    Kp, Mp = padded_k(turned, tile, precision), padded_m(turned, tile)

    def te_turn(t: te.Tensor) -> te.Tensor:
        def entry(row: tirx.Var, k: tirx.Var) -> tirx.PrimExpr:
            c = packed_channel(row)
            k_in, c_in = tirx.min(k, K - 1), tirx.min(c, C - 1)
            tap = k_in // M
            value = t[turned.KH - 1 - tap // turned.KW, turned.KW - 1 - tap % turned.KW, c_in, k_in % M]
            return tirx.if_then_else(tirx.all(k < K, c < C), value, tirx.const(0.0, precision.storage))

        return te.compute((tirx.const(Mp, "int64"), tirx.const(Kp, "int64")), entry, name="turn_weights")

    packed = bb.emit_te(te_turn, w, primfunc_name_hint="adr_turn_weights")
    bias = relax.const(np.zeros(Mp, np.float32))
    return tensor_gemm(turned, Activation(), tile, precision, residual=False), (packed, bias)


def precision_of(tensor: relax.Expr) -> Precision | None:
    """The precision of a tensor in 16 bits; None for others."""
    return next((p for p in PRECISIONS.values() if p.bits == 16 and p.storage == str(tensor.ty.dtype)), None)


def _precision(call: relax.Call) -> Precision:
    precision = ops.precision_of(call)
    assert precision is not None
    return precision


def _packed(bb: relax.BlockBuilder, call: relax.Call, tile: TensorTile) -> Weights:
    """Weights [M, K] and bias [M] of a call, padded with zeros to whole tiles, rows in the order of the kernel."""
    g, precision = ops.geometry_of(call), _precision(call)
    w, bias = call.args[1:3]
    K, M, Kp, Mp = g.K, g.M, padded_k(g, tile, precision), padded_m(g, tile)
    order = [packed_channel(row) for row in range(Mp)]

    def pack(v: np.ndarray) -> np.ndarray:
        return np.pad(v.reshape(K, M).T, ((0, Mp - M), (0, Kp - K)))[order]

    def te_pack(t: te.Tensor) -> te.Tensor:
        def entry(row: tirx.Var, k: tirx.Var) -> tirx.PrimExpr:
            m = packed_channel(row)
            k_in, m_in = tirx.min(k, K - 1), tirx.min(m, M - 1)
            place = (k_in, m_in) if len(t.shape) == 2 else (k_in // (g.KW * g.C), k_in // g.C % g.KW, k_in % g.C, m_in)
            return tirx.if_then_else(tirx.all(k < K, m < M), t[place], tirx.const(0.0, precision.storage))

        return te.compute((tirx.const(Mp, "int64"), tirx.const(Kp, "int64")), entry, name="pack_weights")

    return (
        prepared(bb, w, pack, te_pack),
        prepared(bb, bias, lambda v: np.pad(v, (0, Mp - M)), lambda t: te_lengthen(t, Mp - M)),
    )
