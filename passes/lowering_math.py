"""Transcendental functions and softmax in forms that vectorise, for a CPU target."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax, te, tirx, topi

from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.schedules import vector_math
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.softmax import softmax


def _mapped(function: Callable[[tirx.PrimExpr], tirx.PrimExpr]) -> Callable[[te.Tensor], te.Tensor]:
    return lambda x: te.compute(x.shape, lambda *i: function(x(*i)), name="elementwise", tag=topi.tag.ELEMWISE)


def _erf(x: te.Tensor) -> te.Tensor:
    y = topi.fast_erf(x)  # makes 1 of NaN
    return te.compute(
        x.shape, lambda *i: tirx.Select(tirx.isnan(x(*i)), x(*i), y(*i)), name="erf", tag=topi.tag.ELEMWISE
    )


FUNCTIONS: dict[str, Callable[[te.Tensor], te.Tensor]] = {
    "relax.exp": _mapped(vector_math.exp),
    "relax.sigmoid": _mapped(vector_math.sigmoid),
    "relax.nn.silu": _mapped(lambda v: v * vector_math.sigmoid(v)),
    "relax.tanh": topi.fast_tanh,
    "relax.erf": _erf,
}
"""By operator, what its result is; relative errors are some 1e-7, as those of other engines."""


def lower_function(bb: relax.BlockBuilder, call: relax.Call, _isa: Isa) -> relax.Expr | None:
    """The lowered form of one of `FUNCTIONS`, which TVM may fuse with its neighbours; None if it is not float32."""
    if str(call.ty.dtype) != "float32" or call.ty.shape is None:
        return None
    return bb.call_te(FUNCTIONS[call.op.name], call.args[0], primfunc_name_hint=call.op.name.split(".")[-1])


def lower_softmax(bb: relax.BlockBuilder, call: relax.Call, _isa: Isa) -> relax.Expr | None:
    """The lowered form of a softmax over the last axis; None where it is another."""
    shape = static_shape(call)
    rank = len(shape)
    if rank < 2 or int(call.attrs.axis) % rank != rank - 1 or None in shape[1:] or str(call.ty.dtype) != "float32":
        return None
    batch, rows = call.ty.shape[0], math.prod(shape[1:-1])
    rows_shape = relax.ShapeExpr([batch, rows, shape[-1]])
    x = bb.emit(relax.op.reshape(call.args[0], rows_shape))
    y = relax.call_tir(
        bb.add_func(softmax(rows, shape[-1], shape[0]), "adr_softmax"), [x], tensor_type(rows_shape.values)
    )
    return relax.op.reshape(bb.emit(y), call.ty.shape)
