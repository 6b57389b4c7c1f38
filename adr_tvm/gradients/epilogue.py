"""Gradient of a layer's epilogue, ``relax.adr.epilogue_grad(y, dy) -> (dz, dbias)``, with y = activation(z + bias).

dz = dy activation'(z + bias), the derivative told from y, so that z need not be kept; dbias = sum of dz over all but
the last axis. Float32 tensors of any rank and one static shape; dbias float32 [M].

- ``linear``: dz = dy.
- ``clip``: dz = dy where low < y < high, else 0. At both edges 0, as torch has it for relu, relu6 and hardtanh
  (its ``clamp`` has 1 there: from y alone an edge cannot be told from what lies beyond). Where y is NaN, dz = dy.
- ``leaky_relu``: dz = dy where y > 0, else slope dy; y tells the sign of z for slope >= 0 only.
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, dict_attrs, static_shape, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.schedules.epilogue_gradient import bias_gradient, epilogue_gradient
from adr_tvm.schedules.register_tile import isa_of

EPILOGUE_GRAD = "relax.adr.epilogue_grad"


def epilogue_grad(y: relax.Expr, dy: relax.Expr, activation: Activation) -> relax.Call:
    """A call of ``adr.epilogue_grad``; with a linear activation y is not read and may be dy.

    Raises:
        ValueError: a leaky ReLU of negative slope.
    """
    if activation.kind == "leaky_relu" and activation.slope < 0:
        raise ValueError(f"leaky_relu of slope {activation.slope} has no gradient told from its output: slope < 0")
    return relax.Call(tvm.ir.Op.get(EPILOGUE_GRAD), [y, dy], dict_attrs(**ops.activation_attrs(activation)))


def _infer(call: relax.Call) -> relax.Type:
    dy = call.args[1].ty
    return relax.TupleType([tensor_type(dy.shape), tensor_type([dy.shape[-1]])])


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape, activation = static_shape(call.args[1]), ops.activation_of(call)
    if None in shape:
        raise ValueError(f"{EPILOGUE_GRAD} of shape {call.args[1].ty.shape}: the sum over rows needs a static shape")
    isa = isa_of(tvm.target.Target.current(allow_none=True) or cpu_target())
    if activation.kind == "linear":
        kernel = bb.add_func(bias_gradient(shape, isa), "adr_bias_gradient")
        dbias = bb.emit(relax.call_tir(kernel, [call.args[1]], tensor_type([shape[-1]])))
        return relax.Tuple([call.args[1], dbias])
    kernel = bb.add_func(epilogue_gradient(shape, activation, isa), "adr_epilogue_gradient")
    return relax.call_tir(kernel, list(call.args), [tensor_type(shape), tensor_type([shape[-1]])])


def register() -> None:
    """Register the operator; once per process."""
    ops.register_operator(EPILOGUE_GRAD, ("output", "output_gradient"), _infer, _legalize)
