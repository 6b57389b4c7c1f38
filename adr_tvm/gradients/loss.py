"""The loss that networks are trained with, ``relax.adr.cross_entropy(logits, labels)``, and its gradient.

The mean over the batch of softmax cross entropy: logits float32 [B, C] and labels int32 [B], both of static shape, give
float32 []. Attribute label_smoothing: share of the target that is spread over all classes.
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import dict_attrs, static_shape, tensor_type
from adr_tvm.gradients.registration import register_gradient
from adr_tvm.schedules import cross_entropy as kernels

CROSS_ENTROPY, CROSS_ENTROPY_GRAD = "relax.adr.cross_entropy", "relax.adr.cross_entropy_grad"


def cross_entropy(logits: relax.Expr, labels: relax.Expr, label_smoothing: float = 0.0) -> relax.Call:
    """A call of ``adr.cross_entropy``; see the module.

    Raises:
        ValueError: label_smoothing outside of 0 to 1.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 to 1")
    attrs = dict_attrs(label_smoothing=float(label_smoothing))
    return relax.Call(tvm.ir.Op.get(CROSS_ENTROPY), [logits, labels], attrs)


def _shape(call: relax.Call) -> tuple[int, int]:
    logits, labels = static_shape(call.args[0]), static_shape(call.args[1])
    if len(logits) != 2 or None in logits or labels != logits[:1]:
        raise ValueError(f"{call.op.name} of logits {call.args[0].ty} and labels {call.args[1].ty}")
    return logits[0], logits[1]


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    make = kernels.cross_entropy if call.op.name == CROSS_ENTROPY else kernels.cross_entropy_gradient
    kernel = bb.add_func(make(*_shape(call), float(call.attrs["label_smoothing"])), f"adr_{make.__name__}")
    return relax.call_tir(kernel, list(call.args), call.ty)


def _gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    logits, labels = call.args
    dx = relax.Call(tvm.ir.Op.get(CROSS_ENTROPY_GRAD), [logits, labels, dy], call.attrs)
    return [dx, relax.op.grad.no_grad(labels)]


def register() -> None:
    """Register the operators and the gradient; once per process, later calls change nothing."""
    ops.register_operator(CROSS_ENTROPY, ("logits", "labels"), lambda _call: tensor_type([]), _legalize)
    ops.register_operator(
        CROSS_ENTROPY_GRAD, ("logits", "labels", "gradient"), lambda call: tensor_type(_shape(call)), _legalize
    )
    register_gradient(CROSS_ENTROPY, _gradient)
