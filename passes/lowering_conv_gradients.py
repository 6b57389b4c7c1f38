"""Gradients of convolutions and dense layers as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

import tvm
from tvm import relax, te, tirx
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.dense_input_gradient import dense_input_gradient, is_few_rows
from adr_tvm.schedules.epilogue_gradient import epilogue_gradient
from adr_tvm.schedules.input_gradient import input_gradient, pack_phase_weights, packed_floats, phases
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.tuned import conv_schedule, weight_gradient_schedule
from adr_tvm.schedules.weight_gradient import epilogue_weight_gradient, packs_once, weight_gradient


def lower_weight_grad(
    bb: relax.BlockBuilder, call: relax.Call, batch: int, geometry: ConvGeometry, groups: int, target: Target
) -> relax.Expr:
    """The lowered form of ``adr.conv2d_weight_grad``."""
    if groups == 1:
        func = weight_gradient(geometry, batch, weight_gradient_schedule(target, geometry, batch))
        return relax.call_tir(bb.add_func(func, "adr_weight_gradient"), list(call.args), call.ty)
    return bb.call_te(
        lambda a, b: te_weight_gradient(a, b, geometry, groups), *call.args, primfunc_name_hint="adr_weight_gradient"
    )


def lower_epilogue_weight_grad(
    bb: relax.BlockBuilder, call: relax.Call, batch: int, geometry: ConvGeometry, groups: int, target: Target
) -> relax.Expr:
    """The lowered form of ``adr.epilogue_weight_grad``: one kernel, or the two that it stands for."""
    (x, y, dy), activation = call.args, ops.activation_of(call)
    if groups == 1:
        schedule = weight_gradient_schedule(target, geometry, batch)
        if packs_once(geometry, batch, schedule):
            func = epilogue_weight_gradient(geometry, activation, batch, schedule)
            name = bb.add_func(func, "adr_epilogue_weight_gradient")
            return relax.call_tir(name, [x, y, dy], list(call.ty.fields))
    shape, bias = static_shape(dy), call.ty.fields[1]
    func = epilogue_gradient(tuple(shape), activation, isa_of(target))
    types = [tensor_type(shape), bias]
    both = bb.emit(relax.call_tir(bb.add_func(func, "adr_epilogue_gradient"), [y, dy], types))
    dz, dbias = (bb.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
    weight = bb.normalize(relax.Call(tvm.ir.Op.get("relax.adr.conv2d_weight_grad"), [x, dz], call.attrs))
    return relax.Tuple([bb.emit(lower_weight_grad(bb, weight, batch, geometry, groups, target)), dbias])


def lower_input_grad(
    bb: relax.BlockBuilder, call: relax.Call, batch: int, geometry: ConvGeometry, groups: int, target: Target
) -> relax.Expr:
    """The lowered form of ``adr.conv2d_input_grad``."""
    if groups == 1 and is_few_rows(geometry, batch):
        few = dense_input_gradient(batch, geometry.C, geometry.M, isa_of(target))
        return relax.call_tir(bb.add_func(few, "adr_dense_input_gradient"), list(call.args), call.ty)
    if groups == 1:
        parts = [phase.geometry for phase in phases(geometry)]
        schedules = tuple(None if part is None else conv_schedule(target, part, batch) for part in parts)
        widths = tuple(1 if schedule is None else schedule.tile.NR for schedule in schedules)
        size = sum(packed_floats(phase, NR) for phase, NR in zip(phases(geometry), widths, strict=True))
        pack = bb.add_func(pack_phase_weights(geometry, widths), "adr_pack_phase_weights")
        packed = bb.emit(relax.call_tir(pack, [call.args[1]], tensor_type([size])))
        func = bb.add_func(input_gradient(geometry, batch, schedules), "adr_input_gradient")
        return relax.call_tir(func, [call.args[0], packed], call.ty)
    return bb.call_te(
        lambda a, b: te_input_gradient(a, b, geometry, groups), *call.args, primfunc_name_hint="adr_input_gradient"
    )


def te_weight_gradient(x: te.Tensor, dz: te.Tensor, group: ConvGeometry, groups: int) -> te.Tensor:
    """dW [KH, KW, C, M * groups] of a convolution whose groups have C and M channels each."""
    (SH, SW), (DH, DW), (PT, PL, _, _) = group.strides, group.dilation, group.padding
    b, oy, ox = (
        te.reduce_axis((0, tirx.const(n, "int64")), name)
        for n, name in ((int(x.shape[0]), "b"), (group.OH, "oy"), (group.OW, "ox"))
    )

    def entry(ky, kx, c, m):
        iy, ix = oy * SH - PT + ky * DH, ox * SW - PL + kx * DW
        inside = tirx.all(iy >= 0, iy < group.H, ix >= 0, ix < group.W)
        value = tirx.if_then_else(inside, x[b, iy, ix, m // group.M * group.C + c], tirx.const(0, "float32"))
        return te.sum(value * dz[b, oy, ox, m], axis=[b, oy, ox])

    shape = [tirx.const(n, "int64") for n in (group.KH, group.KW, group.C, group.M * groups)]
    return te.compute(shape, entry, name="weight_gradient")


def te_input_gradient(dz: te.Tensor, w: te.Tensor, group: ConvGeometry, groups: int) -> te.Tensor:
    """dX [B, H, W, C * groups] of a convolution whose groups have C and M channels each; sums are fp32."""
    (SH, SW), (DH, DW), (PT, PL, _, _) = group.strides, group.dilation, group.padding
    ky, kx, m = (
        te.reduce_axis((0, tirx.const(n, "int64")), name)
        for n, name in ((group.KH, "ky"), (group.KW, "kx"), (group.M, "m"))
    )

    def entry(b, y, x, c):
        sy, sx = y + PT - ky * DH, x + PL - kx * DW
        oy, ox = tirx.floordiv(sy, SH), tirx.floordiv(sx, SW)
        inside = tirx.all(
            *(oy >= 0, oy < group.OH, ox >= 0, ox < group.OW),
            *(tirx.floormod(sy, SH) == 0, tirx.floormod(sx, SW) == 0),
        )
        first = c // group.C * group.M
        value = tirx.if_then_else(inside, dz[b, oy, ox, first + m].astype("float32"), tirx.const(0, "float32"))
        return te.sum(value * w[ky, kx, c % group.C, first + m].astype("float32"), axis=[ky, kx, m])

    shape = [tirx.const(n, "int64") for n in (int(dz.shape[0]), group.H, group.W, group.C * groups)]
    made = te.compute(shape, entry, name="input_gradient")
    return made if dz.dtype == "float32" else te.compute(shape, lambda *i: made(*i).astype(dz.dtype), name="rounded")
