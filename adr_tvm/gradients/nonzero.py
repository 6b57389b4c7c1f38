"""Gradients of convolutions that skip what is zero in dZ: operators that ``passes/skip_zeros.py`` uses.

- ``relax.adr.nonzeros(dz) -> lists``: what is not zero in dz float32 [B, OH, OW, M], as a tuple of the tensors of
  ``schedules.nonzero_lists.NonzeroLists.shapes``.
- ``relax.adr.epilogue_nonzeros(y, dy) -> lists``: that of dz = dy activation'(y), with the attributes of
  ``adr.epilogue_grad``.
- ``relax.adr.nonzero_weight_grad(x, dz, lists) -> dw``, ``relax.adr.nonzero_input_grad(dz, w, lists) -> dx`` and
  ``relax.adr.nonzero_epilogue_weight_grad(x, y, dy, lists) -> (dw, dbias)``: what the operators of
  ``gradients/conv2d.py`` of these names compute, with the same attributes and the same bits.

A product with zero is what Adaptive Deep Reuse skips for a cluster of zero vectors (``docs/algorithm.md``, clause B12).
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import dict_attrs, static_shape, tensor_type
from adr_tvm.gradients import conv2d
from adr_tvm.gradients.registration import current_target

NONZEROS, EPILOGUE_NONZEROS = "relax.adr.nonzeros", "relax.adr.epilogue_nonzeros"
NONZERO_WEIGHT_GRAD, NONZERO_INPUT_GRAD = "relax.adr.nonzero_weight_grad", "relax.adr.nonzero_input_grad"
NONZERO_EPILOGUE_WEIGHT_GRAD = "relax.adr.nonzero_epilogue_weight_grad"
_SKIPPING = {
    conv2d.WEIGHT_GRAD: NONZERO_WEIGHT_GRAD,
    conv2d.INPUT_GRAD: NONZERO_INPUT_GRAD,
    conv2d.EPILOGUE_WEIGHT_GRAD: NONZERO_EPILOGUE_WEIGHT_GRAD,
}
_DENSE = {skipping: dense for dense, skipping in _SKIPPING.items()}


def nonzeros(dz: relax.Expr) -> relax.Call:
    """A call of ``adr.nonzeros``."""
    return relax.Call(tvm.ir.Op.get(NONZEROS), [dz])


def epilogue_nonzeros(call: relax.Call) -> relax.Call:
    """A call of ``adr.epilogue_nonzeros`` of what a call of ``adr.epilogue_weight_grad`` reads."""
    attrs = dict_attrs(**ops.activation_attrs(ops.activation_of(call)))
    return relax.Call(tvm.ir.Op.get(EPILOGUE_NONZEROS), list(call.args[1:]), attrs)


def skipping(call: relax.Call, lists: relax.Expr) -> relax.Call:
    """The form that skips zeros of a call of an operator of ``gradients/conv2d.py``."""
    return relax.Call(tvm.ir.Op.get(_SKIPPING[call.op.name]), [*call.args, lists], call.attrs)


def without_lists(call: relax.Call) -> relax.Call:
    """The dense form of a call that skips zeros."""
    return relax.Call(tvm.ir.Op.get(_DENSE[call.op.name]), list(call.args[:-1]), call.attrs)


def _infer_lists(call: relax.Call) -> relax.TupleType:
    from adr_tvm.schedules.nonzero_lists import NonzeroLists

    shape = static_shape(call.args[0])
    if None in shape or len(shape) != 4:
        raise ValueError(f"{call.op.name} of {call.args[0].ty}: four static dimensions are expected")
    return relax.TupleType([tensor_type(dims, dtype) for dims, dtype in NonzeroLists(*shape).shapes])


def _infer(call: relax.Call) -> relax.Type:
    return conv2d.gradient_type(without_lists(call))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    from adr_tvm.passes import lowering_nonzero_gradients as lowering

    lower = {
        NONZEROS: lowering.lower_nonzeros,
        EPILOGUE_NONZEROS: lowering.lower_epilogue_nonzeros,
        NONZERO_WEIGHT_GRAD: lowering.lower_weight_grad,
        NONZERO_INPUT_GRAD: lowering.lower_input_grad,
        NONZERO_EPILOGUE_WEIGHT_GRAD: lowering.lower_epilogue_weight_grad,
    }
    return lower[call.op.name](bb, call, current_target())


def register() -> None:
    """Register the operators; once per process, later calls change nothing."""
    conv2d.register()
    ops.register_operator(NONZEROS, ("output_gradient",), _infer_lists, _legalize)
    ops.register_operator(EPILOGUE_NONZEROS, ("output", "output_gradient"), _infer_lists, _legalize)
    ops.register_operator(NONZERO_WEIGHT_GRAD, ("data", "output_gradient", "lists"), _infer, _legalize)
    ops.register_operator(NONZERO_INPUT_GRAD, ("output_gradient", "weight", "lists"), _infer, _legalize)
    fused = ("data", "output", "output_gradient", "lists")
    ops.register_operator(NONZERO_EPILOGUE_WEIGHT_GRAD, fused, _infer, _legalize)
