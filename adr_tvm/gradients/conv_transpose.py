"""Transposed convolutions: y = the input gradient of a convolution from y's side to x's, so both ways are known.

With w' = w as [KH, KW, M / groups, C]: y = ``adr.conv2d_input_grad(x, w')``, dx = ``adr.conv2d(dy, w')`` and dw' =
``adr.conv2d_weight_grad(dy, x)``. ``nn.conv2d_transpose`` has x float32 [B, H, W, C] (NHWC) and w [C, M / groups, KH,
KW] (IOHW); B must be fixed where it is lowered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import constant, static_shape
from adr_tvm.gradients.conv2d import INPUT_GRAD, conv2d_input_grad, conv2d_weight_grad
from adr_tvm.gradients.registration import register_gradient

CONV_TRANSPOSE = "relax.nn.conv2d_transpose"
TO_HWIO, TO_IOHW = [2, 3, 1, 0], [3, 2, 0, 1]


def refusal(call: relax.Call) -> str | None:
    """Why a call of ``nn.conv2d_transpose`` is not handled; None where it is."""
    a = call.attrs
    layouts = (str(a.data_layout), str(a.kernel_layout))
    if layouts != ("NHWC", "IOHW") or str(call.ty.dtype) != "float32":
        return f"layout {layouts[0]}/{layouts[1]} of {call.ty.dtype}, only NHWC/IOHW of float32 is handled"
    return None if None not in static_shape(call.args[0])[1:] else "a dimension other than the batch is symbolic"


def _attributes(call: relax.Call) -> dict[str, Any]:
    a = call.attrs
    ints: dict[str, Any] = {k: tuple(int(v) for v in getattr(a, k)) for k in ("strides", "padding", "dilation")}
    return {**ints, "groups": int(a.groups)}


def _hwio(bb: relax.BlockBuilder, w: relax.Expr) -> relax.Expr:
    value = constant(w)
    if value is not None:
        return relax.const(np.ascontiguousarray(value.transpose(TO_HWIO)))
    return bb.emit(relax.op.permute_dims(w, TO_HWIO))


def lower_conv_transpose(bb: relax.BlockBuilder, call: relax.Call, _isa: object = None) -> relax.Expr | None:
    """The call as ``adr.conv2d_input_grad``; None where it is not handled, or the batch is symbolic."""
    if refusal(call) is not None or static_shape(call.args[0])[0] is None:
        return None
    _, H, W, _ = static_shape(call)
    return conv2d_input_grad(call.args[0], _hwio(bb, call.args[1]), input=(H, W), **_attributes(call))


def _gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    why = refusal(call)
    assert why is None, f"{call.op.name}: {why}"
    x, w = call.args
    kernel = static_shape(w)[2:]
    common = _attributes(call)
    dx = bb.emit(_convolved(bb, dy, _hwio(bb, w), static_shape(x)[3], common))
    dw = bb.emit(conv2d_weight_grad(dy, x, kernel=kernel, **common))
    return [dx, relax.op.permute_dims(dw, TO_IOHW)]


def _convolved(bb: relax.BlockBuilder, x: relax.Expr, w: relax.Expr, M: int, common: dict[str, Any]) -> relax.Expr:
    return ops.conv2d(x, w, relax.const(np.zeros(M, np.float32)), name="conv_transpose_gradient", **common)


def _input_grad_gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """Of ``adr.conv2d_input_grad(dz, w)``, the same with w as it is."""
    dz, w = call.args
    common: dict[str, Any] = {k: tuple(int(v) for v in call.attrs[k]) for k in ("strides", "padding", "dilation")}
    common["groups"] = int(call.attrs["groups"])
    KH, KW = static_shape(w)[:2]
    first = bb.emit(_convolved(bb, dy, w, static_shape(dz)[3], common))
    return [first, conv2d_weight_grad(dy, dz, kernel=(KH, KW), **common)]


def register() -> None:
    """Register the gradients; once per process, later calls change nothing."""
    register_gradient(CONV_TRANSPOSE, _gradient, refusal)
    register_gradient(INPUT_GRAD, _input_grad_gradient)
