"""Local response normalisation, ``relax.adr.lrn(x)``, and its gradient (formulas: ``schedules/lrn.py``).

x float32 [B, H, W, C], channels last, all but B fixed. Attributes as ONNX has them, but for the window, which is given
by its reach: before and after (ONNX: (size - 1) // 2 and size // 2), alpha, beta, bias.
"""

from __future__ import annotations

import math

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import dict_attrs, static_shape
from adr_tvm.gradients.registration import current_target, register_gradient
from adr_tvm.schedules import lrn as kernels
from adr_tvm.schedules.register_tile import isa_of

LRN, LRN_GRAD = "relax.adr.lrn", "relax.adr.lrn_grad"


def lrn(x: relax.Expr, norm: kernels.Lrn) -> relax.Call:
    """A call of ``adr.lrn``; see the module."""
    attrs = dict_attrs(
        before=norm.before,
        after=norm.after,
        alpha=float(norm.alpha),
        beta=float(norm.beta),
        bias=float(norm.bias),
    )
    return relax.Call(tvm.ir.Op.get(LRN), [x], attrs)


def _norm(call: relax.Call) -> kernels.Lrn:
    a = call.attrs
    return kernels.Lrn(int(a["before"]), int(a["after"]), float(a["alpha"]), float(a["beta"]), float(a["bias"]))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x = call.args[0]
    _, *pixels, C = static_shape(x)
    make = kernels.lrn if call.op.name == LRN else kernels.lrn_gradient
    flat = relax.ShapeExpr([x.ty.shape[0], math.prod(pixels), C])
    kernel = bb.add_func(make(math.prod(pixels), C, _norm(call), isa_of(current_target())), f"adr_{make.__name__}")
    args = [bb.emit(relax.op.reshape(arg, flat)) for arg in call.args]
    y = bb.emit(relax.call_tir(kernel, args, relax.TensorType(flat.values, "float32")))
    return relax.op.reshape(y, x.ty.shape)


def _gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: relax.BlockBuilder) -> list[relax.Expr]:
    return [relax.Call(tvm.ir.Op.get(LRN_GRAD), [call.args[0], dy], call.attrs)]


def register() -> None:
    """Register the operators and the gradient; once per process, later calls change nothing."""
    ops.register_operator(LRN, ("data",), lambda call: call.args[0].ty, _legalize)
    ops.register_operator(LRN_GRAD, ("data", "gradient"), lambda call: call.args[0].ty, _legalize)
    register_gradient(LRN, _gradient)
