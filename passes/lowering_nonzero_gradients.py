"""Gradients that skip zeros as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

from collections.abc import Iterable

from tvm import relax
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import static_shape
from adr_tvm.gradients.conv2d import gradient_geometry
from adr_tvm.gradients.nonzero import without_lists
from adr_tvm.passes.lowering_conv_gradients import epilogue_gradients, packed_phases
from adr_tvm.schedules.nonzero_input_gradient import nonzero_input_gradient
from adr_tvm.schedules.nonzero_lists import NonzeroLists, list_epilogue_nonzeros, list_nonzeros
from adr_tvm.schedules.nonzero_weight_gradient import nonzero_epilogue_weight_gradient, nonzero_weight_gradient
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.tuned import weight_gradient_schedule
from adr_tvm.schedules.weight_gradient import packs_once


def lower_nonzeros(bb: relax.BlockBuilder, call: relax.Call, _target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzeros``."""
    func = list_nonzeros(NonzeroLists(*static_shape(call.args[0])))
    return relax.call_tir(bb.add_func(func, "adr_list_nonzeros"), list(call.args), list(call.ty.fields))


def lower_epilogue_nonzeros(bb: relax.BlockBuilder, call: relax.Call, _target: Target) -> relax.Expr:
    """The lowered form of ``adr.epilogue_nonzeros``."""
    func = list_epilogue_nonzeros(NonzeroLists(*static_shape(call.args[0])), ops.activation_of(call))
    return relax.call_tir(bb.add_func(func, "adr_list_nonzeros"), list(call.args), list(call.ty.fields))


def lower_weight_grad(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzero_weight_grad``."""
    batch, g, _ = gradient_geometry(without_lists(call))
    func = nonzero_weight_gradient(g, batch, weight_gradient_schedule(target, g, batch), isa_of(target))
    args = [*call.args[:2], *_by_channel(bb, call)]
    return relax.call_tir(bb.add_func(func, "adr_nonzero_weight_gradient"), args, call.ty)


def lower_epilogue_weight_grad(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzero_epilogue_weight_grad``: one kernel, or two (``lowering_conv_gradients``)."""
    batch, g, _ = gradient_geometry(without_lists(call))
    (x, y, dy), activation, types = call.args[:3], ops.activation_of(call), list(call.ty.fields)
    schedule, isa, by_channel = weight_gradient_schedule(target, g, batch), isa_of(target), _by_channel(bb, call)
    if packs_once(g, batch, schedule):
        func = nonzero_epilogue_weight_gradient(g, activation, batch, schedule, isa)
        name = bb.add_func(func, "adr_nonzero_epilogue_weight_gradient")
        return relax.call_tir(name, [x, y, dy, *by_channel], types)
    dz, dbias = epilogue_gradients(bb, y, dy, activation, target)
    func = nonzero_weight_gradient(g, batch, schedule, isa)
    name = bb.add_func(func, "adr_nonzero_weight_gradient")
    return relax.Tuple([bb.emit(relax.call_tir(name, [x, dz, *by_channel], types[0])), dbias])


def lower_input_grad(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzero_input_grad``."""
    batch, g, _ = gradient_geometry(without_lists(call))
    dz, w = call.args[:2]
    packed, schedules = packed_phases(bb, w, g, batch, target)
    func = nonzero_input_gradient(g, batch, schedules, isa_of(target))
    args = [dz, w, packed, *_parts(bb, call, range(4))]
    return relax.call_tir(bb.add_func(func, "adr_nonzero_input_gradient"), args, call.ty)


def _by_channel(bb: relax.BlockBuilder, call: relax.Call) -> list[relax.Expr]:
    return _parts(bb, call, (0, 4, 5, 6))


def _parts(bb: relax.BlockBuilder, call: relax.Call, numbers: Iterable[int]) -> list[relax.Expr]:
    return [bb.emit(relax.TupleGetItem(call.args[-1], i)) for i in numbers]
