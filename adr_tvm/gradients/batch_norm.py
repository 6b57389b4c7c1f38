"""Batch normalisation in training, ``relax.adr.batch_norm(x, gamma, beta) -> (y, mean, variance)``, and its gradient.

x float32 of any rank, channels last, gamma and beta float32 [C]; mean and variance float32 [C] are those of the batch
(of all but the last axis, the variance biased), which running statistics are made from. They get no gradient of their
own: what a loss makes of them does not flow back. Attributes: epsilon, name (of the layer), momentum (the share of the
batch in the running statistics, as torch counts it). Kernels: ``schedules/batch_norm.py``.
"""

from __future__ import annotations

import math

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import dict_attrs, static_shape, tensor_type
from adr_tvm.gradients.registration import current_target, register_gradient
from adr_tvm.schedules import batch_norm as kernels
from adr_tvm.schedules.register_tile import isa_of

BATCH_NORM, BATCH_NORM_GRAD = "relax.adr.batch_norm", "relax.adr.batch_norm_grad"


def batch_norm(
    x: relax.Expr,
    gamma: relax.Expr,
    beta: relax.Expr,
    epsilon: float = 1e-5,
    name: str = "",
    momentum: float = 0.1,
) -> relax.Call:
    """A call of ``adr.batch_norm``; see the module."""
    attrs = dict_attrs(epsilon=float(epsilon), name=name, momentum=float(momentum))
    return relax.Call(tvm.ir.Op.get(BATCH_NORM), [x, gamma, beta], attrs)


def _infer(call: relax.Call) -> relax.Type:
    x = call.args[0].ty
    channels = tensor_type([x.shape[-1]])
    return relax.TupleType([tensor_type(x.shape), channels, channels])


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape = static_shape(call.args[0])
    if None in shape:
        raise ValueError(f"{call.op.name} of {call.args[0].ty}: statistics need a static shape")
    rows, C = math.prod(shape[:-1]), shape[-1]
    make = kernels.batch_norm if call.op.name == BATCH_NORM else kernels.batch_norm_gradient
    flat = relax.ShapeExpr([rows, C])
    gv = bb.add_func(make(rows, C, float(call.attrs["epsilon"]), isa_of(current_target())), f"adr_{make.__name__}")
    args = [bb.emit(relax.op.reshape(a, flat)) if len(a.ty.shape) == len(shape) > 1 else a for a in call.args]
    types = [tensor_type([rows, C]), tensor_type([C]), tensor_type([C])]
    found = bb.emit(relax.call_tir(gv, args, types))
    first, *more = (bb.emit(relax.TupleGetItem(found, i)) for i in range(3))
    return relax.Tuple([bb.emit(relax.op.reshape(first, relax.ShapeExpr(list(shape)))), *more])


def _gradient(var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, gamma, _ = call.args
    mean, variance = (bb.emit(relax.TupleGetItem(var, i)) for i in (1, 2))
    args = [x, gamma, mean, variance, bb.emit(relax.TupleGetItem(dy, 0))]
    found = bb.emit(relax.Call(tvm.ir.Op.get(BATCH_NORM_GRAD), args, call.attrs))
    return [relax.TupleGetItem(found, i) for i in range(3)]


def register() -> None:
    """Register the operators and the gradient; once per process, later calls change nothing."""
    ops.register_operator(BATCH_NORM, ("data", "gamma", "beta"), _infer, _legalize)
    ops.register_operator(BATCH_NORM_GRAD, ("data", "gamma", "mean", "variance", "gradient"), _infer, _legalize)
    register_gradient(BATCH_NORM, _gradient)
