"""Convolutions and dense layers without reuse as a call of one TIR kernel, for a CUDA target."""

from __future__ import annotations

from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.passes.lowering_cuda_calls import packed_weights
from adr_tvm.passes.lowering_dense import image_of
from adr_tvm.passes.lowering_tensor_cores import dense_on_tensor_cores
from adr_tvm.schedules.cuda.implicit_gemm import implicit_gemm
from adr_tvm.schedules.cuda.tuned_tile import thread_gemm_tile


def lower_dense(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The lowered form of a call of ``adr.conv2d``, ``adr.conv2d_add`` or ``adr.dense``."""
    g, x, out = ops.geometry_of(call), image_of(bb, call), ops.output_type(call)
    batch = static_shape(x)[0]
    residual = call.op.name == ops.CONV2D_ADD
    if ops.precision_of(call) is None:
        tile = thread_gemm_tile(g, batch)
        kernel = implicit_gemm(g, ops.activation_of(call), tile, residual)
        weights = packed_weights(bb, call, tile)
    else:
        kernel, weights = dense_on_tensor_cores(bb, call, batch, residual)
    image = tensor_type([x.ty.shape[0], g.OH, g.OW, g.M], str(out.dtype))
    args = [x, *weights, *call.args[3:]]
    y = relax.call_tir(bb.add_func(kernel, "adr_conv2d"), args, image)
    return relax.op.reshape(bb.emit(y), out.shape) if call.op.name == ops.DENSE else y
