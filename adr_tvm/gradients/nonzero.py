"""Gradients of convolutions that skip what is zero in dZ: three operators, used by ``passes/skip_zeros.py``.

- ``relax.adr.nonzeros(dz) -> lists``: what is not zero in dz float32 [B, OH, OW, M], as a tuple of the tensors of
  ``schedules.nonzero_lists.NonzeroLists.shapes``.
- ``relax.adr.nonzero_weight_grad(x, dz, lists) -> dw`` and ``relax.adr.nonzero_input_grad(dz, w, lists) -> dx``:
  ``adr.conv2d_weight_grad`` and ``adr.conv2d_input_grad`` (``gradients/conv2d.py``), of the same attributes and with
  the same bits.

A product with zero is what Adaptive Deep Reuse skips for a cluster of zero vectors (``docs/algorithm.md``, clause B10).
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.gradients import conv2d
from adr_tvm.gradients.registration import current_target

NONZEROS = "relax.adr.nonzeros"
NONZERO_WEIGHT_GRAD, NONZERO_INPUT_GRAD = "relax.adr.nonzero_weight_grad", "relax.adr.nonzero_input_grad"


def nonzeros(dz: relax.Expr) -> relax.Call:
    """A call of ``adr.nonzeros``."""
    return relax.Call(tvm.ir.Op.get(NONZEROS), [dz])


def skipping(call: relax.Call, lists: relax.Expr) -> relax.Call:
    """A call of ``adr.conv2d_weight_grad`` or ``adr.conv2d_input_grad`` in the form that skips zeros."""
    name = NONZERO_WEIGHT_GRAD if call.op.name == conv2d.WEIGHT_GRAD else NONZERO_INPUT_GRAD
    return relax.Call(tvm.ir.Op.get(name), [*call.args, lists], call.attrs)


def without_lists(call: relax.Call) -> relax.Call:
    """The dense form of a call that skips zeros."""
    name = conv2d.WEIGHT_GRAD if call.op.name == NONZERO_WEIGHT_GRAD else conv2d.INPUT_GRAD
    return relax.Call(tvm.ir.Op.get(name), list(call.args[:2]), call.attrs)


def _infer_lists(call: relax.Call) -> relax.TupleType:
    from adr_tvm.schedules.nonzero_lists import NonzeroLists

    shape = static_shape(call.args[0])
    if None in shape or len(shape) != 4:
        raise ValueError(f"adr.nonzeros of {call.args[0].ty}: four static dimensions are expected")
    return relax.TupleType([tensor_type(dims, dtype) for dims, dtype in NonzeroLists(*shape).shapes])


def _infer(call: relax.Call) -> relax.Type:
    batch, g, _ = conv2d.gradient_geometry(without_lists(call))
    if call.op.name == NONZERO_WEIGHT_GRAD:
        return tensor_type([g.KH, g.KW, g.C, g.M])
    return tensor_type([batch, g.H, g.W, g.C])


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    from adr_tvm.passes import lowering_nonzero_gradients as lowering

    lower = {
        NONZEROS: lowering.lower_nonzeros,
        NONZERO_WEIGHT_GRAD: lowering.lower_weight_grad,
        NONZERO_INPUT_GRAD: lowering.lower_input_grad,
    }
    return lower[call.op.name](bb, call, current_target())


def register() -> None:
    """Register the operators; once per process, later calls change nothing."""
    conv2d.register()
    ops.register_operator(NONZEROS, ("output_gradient",), _infer_lists, _legalize)
    ops.register_operator(NONZERO_WEIGHT_GRAD, ("data", "output_gradient", "lists"), _infer, _legalize)
    ops.register_operator(NONZERO_INPUT_GRAD, ("output_gradient", "weight", "lists"), _infer, _legalize)
