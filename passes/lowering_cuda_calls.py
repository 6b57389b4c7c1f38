"""What lowerings to CUDA kernels share: calls with several outputs, and the dense kernels' weights."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx

from adr_tvm import ops
from adr_tvm.passes.lowering_dense import prepared
from adr_tvm.schedules.cuda.implicit_gemm import padded_k, padded_m
from adr_tvm.schedules.cuda.thread_tile import ThreadTile
from adr_tvm.schedules.packing import te_lengthen


def packed_weights(bb: relax.BlockBuilder, call: relax.Call, tile: ThreadTile) -> tuple[relax.Expr, relax.Expr]:
    """Weights [K, M] and bias [M] of a call, both padded with zeros to whole tiles."""
    g = ops.geometry_of(call)
    w, bias = call.args[1:3]
    K, M, Kp, Mp = g.K, g.M, padded_k(g, tile), padded_m(g, tile)

    def te_pad(t: te.Tensor) -> te.Tensor:
        def entry(k: tirx.Var, m: tirx.Var) -> tirx.PrimExpr:
            k_in, m_in = tirx.min(k, K - 1), tirx.min(m, M - 1)
            place = (k_in, m_in) if len(t.shape) == 2 else (k_in // (g.KW * g.C), k_in // g.C % g.KW, k_in % g.C, m_in)
            return tirx.if_then_else(tirx.all(k < K, m < M), t[place], tirx.const(0.0, "float32"))

        return te.compute((tirx.const(Kp, "int64"), tirx.const(Mp, "int64")), entry, name="pad_weights")

    return (
        prepared(bb, w, lambda v: np.pad(v.reshape(K, M), ((0, Kp - K), (0, Mp - M))), te_pad),
        prepared(bb, bias, lambda v: np.pad(v, (0, Mp - M)), lambda t: te_lengthen(t, Mp - M)),
    )


class KernelCalls:
    """Emits calls of kernels, whose names begin with a prefix."""

    def __init__(self, bb: relax.BlockBuilder, prefix: str):
        self.bb, self.prefix = bb, prefix

    def outputs(
        self,
        name: str,
        kernel: tirx.PrimFunc,
        args: list[relax.Expr],
        types: list[relax.TensorType],
        inplace: list[int] | None = None,
    ) -> list[relax.Expr]:
        """The outputs of a kernel; ``inplace``: which argument each of them is, -1 for none."""
        function = self.bb.add_func(kernel, f"adr_{self.prefix}_{name}")
        out = types if len(types) > 1 else types[0]
        if inplace is None:
            made = self.bb.emit(relax.call_tir(function, args, out))
        else:
            made = self.bb.emit(relax.op.call_tir_inplace(function, args, inplace, out))
        if len(types) == 1:
            return [made]
        return [self.bb.emit(relax.TupleGetItem(made, i)) for i in range(len(types))]
