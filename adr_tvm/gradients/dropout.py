"""Dropout, ``relax.adr.dropout(x, seed)``, and its gradient: the same mask, computed again (``schedules/dropout.py``).

x float32 of any static shape, seed int64 [1]. Attributes: rate, the share of entries that become 0, while the others
are divided by 1 - rate (Srivastava et al., "Dropout", JMLR 2014; inverted); stream, which tells the dropouts of a
network apart. One seed gives the same bytes at any number of threads; a training step needs a seed of its own.
"""

from __future__ import annotations

import math

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import dict_attrs, static_shape, tensor_type
from adr_tvm.gradients.registration import register_gradient
from adr_tvm.schedules.dropout import dropout as kernel_of

DROPOUT = "relax.adr.dropout"


def dropout(x: relax.Expr, seed: relax.Expr, rate: float, stream: int = 0) -> relax.Call:
    """A call of ``adr.dropout``; see the module.

    Raises:
        ValueError: a rate outside of 0 to 1, or of 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate is {rate}, expected at least 0 and less than 1")
    return relax.Call(tvm.ir.Op.get(DROPOUT), [x, seed], dict_attrs(rate=float(rate), stream=stream))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, seed = call.args
    shape = static_shape(x)
    if None in shape:
        raise ValueError(f"{call.op.name} of {x.ty}: needs a static shape")
    size = math.prod(shape)
    gv = bb.add_func(kernel_of(size, float(call.attrs["rate"]), int(call.attrs["stream"])), "adr_dropout")
    flat = bb.emit(relax.op.reshape(x, relax.ShapeExpr([size])))
    y = bb.emit(relax.call_tir(gv, [flat, seed], tensor_type([size])))
    return relax.op.reshape(y, relax.ShapeExpr(list(shape)))


def _gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    seed = call.args[1]
    return [relax.Call(tvm.ir.Op.get(DROPOUT), [dy, seed], call.attrs), relax.op.grad.no_grad(seed)]


def register() -> None:
    """Register the operator and its gradient; once per process, later calls change nothing."""
    ops.register_operator(DROPOUT, ("data", "seed"), lambda call: call.args[0].ty, _legalize)
    register_gradient(DROPOUT, _gradient)
