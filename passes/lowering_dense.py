"""Convolutions and dense layers without reuse as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import constant, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.dense_conv2d import Destination, dense_conv2d
from adr_tvm.schedules.narrow_conv2d import is_narrow, narrow_conv2d
from adr_tvm.schedules.packing import pack_weights, pad_channels, te_pack_weights, te_pad_channels
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.tuned import conv_schedule, half_conv_schedule


def lower_dense(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of a call of ``adr.conv2d``, ``adr.conv2d_add`` or ``adr.dense``."""
    kernel, args, image = dense_kernel(bb, call, target, Destination(residual=call.op.name == ops.CONV2D_ADD))
    y = relax.call_tir(kernel, args, image)
    return relax.op.reshape(bb.emit(y), ops.output_type(call).shape) if call.op.name == ops.DENSE else y


def dense_kernel(
    bb: relax.BlockBuilder, call: relax.Call, target: Target, to: Destination
) -> tuple[Any, list[relax.Expr], relax.TensorType]:
    """The kernel of a call, its arguments, and the type of the tensor that it writes (to)."""
    g, x = ops.geometry_of(call), image_of(bb, call)
    dtype = str(x.ty.dtype)
    image = tensor_type([x.ty.shape[0], g.OH, g.OW, g.M if to.channels is None else to.channels], dtype)
    if dtype == "float32" and to == Destination() and is_narrow(isa_of(target), g):
        func, NR = narrow_conv2d(g, ops.activation_of(call), isa_of(target)), g.M
    else:
        choose = half_conv_schedule if dtype == "float16" else conv_schedule
        schedule = choose(target, g, static_shape(x)[0])
        func, NR = dense_conv2d(g, ops.activation_of(call), schedule, to, dtype), schedule.tile.NR
    return bb.add_func(func, "adr_conv2d"), [x, *packed_weights(bb, call, g, NR), *call.args[3:]], image


def image_of(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The data of a convolution, or of a dense layer as a convolution's, [B, H, W, C]."""
    g, x = ops.geometry_of(call), call.args[0]
    if call.op.name not in (ops.DENSE, ops.REUSE_DENSE):
        return x
    return bb.emit(relax.op.reshape(x, relax.ShapeExpr([x.ty.shape[0], g.H, 1, g.C])))


def packed_weights(
    bb: relax.BlockBuilder, call: relax.Call, geometry: ConvGeometry, NR: int
) -> tuple[relax.Expr, relax.Expr]:
    """Weights and bias of a call in the layout of kernels with blocks of NR output channels."""
    g = geometry
    w, bias = call.args[1:3]
    shape = (g.KH, g.KW, g.C, g.M)

    def te_pack(t: te.Tensor) -> te.Tensor:
        four = te.compute(shape, lambda y, x, c, m: t[c, m], name="as_hwio") if len(t.shape) == 2 else t
        return te_pack_weights(four, NR)

    return (
        prepared(bb, w, lambda v: pack_weights(v.reshape(shape), NR), te_pack),
        prepared(bb, bias, lambda v: pad_channels(v, NR), lambda t: te_pad_channels(t, NR)),
    )


def prepared(
    bb: relax.BlockBuilder, expr: relax.Expr, fold: Callable[[np.ndarray], np.ndarray], te_fold: Any
) -> relax.Expr:
    """A weight-like argument in the kernels' layout: at compile time where it is constant, else on every call."""
    value = constant(expr)
    if value is not None:
        return relax.const(fold(value))
    return bb.emit_te(te_fold, expr, primfunc_name_hint="adr_prepare")
