"""Gradients that skip zeros as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

from tvm import relax
from tvm.target import Target

from adr_tvm._tvm import static_shape
from adr_tvm.gradients.conv2d import gradient_geometry
from adr_tvm.gradients.nonzero import without_lists
from adr_tvm.passes.lowering_conv_gradients import packed_phases
from adr_tvm.schedules.nonzero_input_gradient import nonzero_input_gradient
from adr_tvm.schedules.nonzero_lists import NonzeroLists, list_nonzeros
from adr_tvm.schedules.nonzero_weight_gradient import nonzero_weight_gradient
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.tuned import weight_gradient_schedule


def lower_nonzeros(bb: relax.BlockBuilder, call: relax.Call, _target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzeros``."""
    func = list_nonzeros(NonzeroLists(*static_shape(call.args[0])))
    return relax.call_tir(bb.add_func(func, "adr_list_nonzeros"), list(call.args), list(call.ty.fields))


def lower_weight_grad(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzero_weight_grad``."""
    batch, g, _ = gradient_geometry(without_lists(call))
    func = nonzero_weight_gradient(g, batch, weight_gradient_schedule(target, g, batch), isa_of(target))
    counts, *_, starts, pixels, values = _parts(bb, call)
    args = [*call.args[:2], counts, starts, pixels, values]
    return relax.call_tir(bb.add_func(func, "adr_nonzero_weight_gradient"), args, call.ty)


def lower_input_grad(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of ``adr.nonzero_input_grad``."""
    batch, g, _ = gradient_geometry(without_lists(call))
    dz, w = call.args[:2]
    packed, schedules = packed_phases(bb, w, g, batch, target)
    func = nonzero_input_gradient(g, batch, schedules, isa_of(target))
    args = [dz, w, packed, *_parts(bb, call)[:4]]
    return relax.call_tir(bb.add_func(func, "adr_nonzero_input_gradient"), args, call.ty)


def _parts(bb: relax.BlockBuilder, call: relax.Call) -> list[relax.Expr]:
    lists = call.args[2]
    return [bb.emit(relax.TupleGetItem(lists, i)) for i in range(len(lists.ty.fields))]
