"""Gradients of the convolutions and dense layers of ``adr_tvm/ops.py``, through two operators of their own.

For y = activation(conv(x, w) + bias [+ residual]) and dz the gradient of what the activation is applied to:

- ``relax.adr.conv2d_weight_grad(x, dz)``: dW[ky, kx, c, m] = sum over b, oy, ox of x[b, oy SH - PT + ky DH,
  ox SW - PL + kx DW, c] dz[b, oy, ox, m], zero where x is padding. Attributes strides, padding (top, left, bottom,
  right), dilation, kernel = [KH, KW], groups; x [B, H, W, C], dz [B, OH, OW, M], dW [KH, KW, C / groups, M].
- ``relax.adr.conv2d_input_grad(dz, w)``: dX, the transpose of the same linear map. Attributes strides, padding,
  dilation, input = [H, W], groups; dz [B, OH, OW, M], w [KH, KW, C / groups, M], dX [B, H, W, C].

- ``relax.adr.epilogue_weight_grad(x, y, dy) -> (dw, dbias)``: the weight gradient with the epilogue's
  (``gradients/epilogue.py``), for a layer whose dz nothing else reads. Attributes of both.

A dense layer is a 1x1 convolution: dW = X^T dZ, dX = dZ W^T. All float32, channels last, of static shapes; in mixed
precision factors and dX are of 16 bits (``passes/lower_precision.py``).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, dict_attrs, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import epilogue

WEIGHT_GRAD, INPUT_GRAD = "relax.adr.conv2d_weight_grad", "relax.adr.conv2d_input_grad"
EPILOGUE_WEIGHT_GRAD = "relax.adr.epilogue_weight_grad"


def conv2d_weight_grad(
    x: relax.Expr,
    dz: relax.Expr,
    *,
    kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> relax.Call:
    """A call of ``adr.conv2d_weight_grad``; see the module."""
    attrs = dict_attrs(
        kernel=list(kernel), strides=list(strides), padding=list(padding), dilation=list(dilation), groups=groups
    )
    return relax.Call(tvm.ir.Op.get(WEIGHT_GRAD), [x, dz], attrs)


def epilogue_weight_grad(x: relax.Expr, epilogue_call: relax.Call, weight_call: relax.Call) -> relax.Call:
    """A call of ``adr.epilogue_weight_grad`` in place of two others, of which the second reads the first's dz.

    Args:
        x: what the layer sees.
        epilogue_call: of ``adr.epilogue_grad``.
        weight_call: of ``adr.conv2d_weight_grad``.
    """
    attrs = ops.attributes(weight_call) | ops.activation_attrs(ops.activation_of(epilogue_call))
    return relax.Call(tvm.ir.Op.get(EPILOGUE_WEIGHT_GRAD), [x, *epilogue_call.args], dict_attrs(**attrs))


def conv2d_input_grad(
    dz: relax.Expr,
    w: relax.Expr,
    *,
    input: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> relax.Call:
    """A call of ``adr.conv2d_input_grad``; see the module."""
    attrs = dict_attrs(
        input=list(input), strides=list(strides), padding=list(padding), dilation=list(dilation), groups=groups
    )
    return relax.Call(tvm.ir.Op.get(INPUT_GRAD), [dz, w], attrs)


def gradient_geometry(call: relax.Call) -> tuple[int, ConvGeometry, int]:
    """(batch, geometry of one group of the convolution, groups) of a call of either operator.

    Raises:
        ValueError: a shape is symbolic, or the shapes do not fit each other.
    """
    first, second = (static_shape(arg) for arg in (call.args[0], call.args[-1]))
    if None in (*first, *second):
        raise ValueError(f"{call.op.name} of {call.args[0].ty} and {call.args[1].ty}: gradients need static shapes")
    ints: dict[str, Any] = {k: tuple(int(v) for v in call.attrs[k]) for k in ("strides", "padding", "dilation")}
    groups = int(call.attrs["groups"])
    if call.op.name != INPUT_GRAD:
        (KH, KW), (_, H, W, C), dz = (int(v) for v in call.attrs["kernel"]), first, second
        C //= groups
    else:
        (H, W), (KH, KW, C, M), dz = (int(v) for v in call.attrs["input"]), second, first
        if dz[3] != M:
            raise ValueError(f"{call.op.name}: dz has {dz[3]} channels, the weights {M}")
    geometry = ConvGeometry(H, W, C, KH, KW, dz[3] // groups, **ints)
    if dz[1:3] != (geometry.OH, geometry.OW):
        raise ValueError(f"{call.op.name}: dz is {dz[1]}x{dz[2]}, the convolution's output {geometry.OH}x{geometry.OW}")
    return dz[0], geometry, groups


def _infer(call: relax.Call) -> relax.Type:
    batch, g, groups = gradient_geometry(call)
    weight = tensor_type([g.KH, g.KW, g.C, g.M * groups])
    if call.op.name == WEIGHT_GRAD:
        return weight
    if call.op.name == EPILOGUE_WEIGHT_GRAD:
        return relax.TupleType([weight, tensor_type([g.M * groups])])
    return tensor_type([batch, g.H, g.W, g.C * groups], str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    from adr_tvm.passes.lowering_conv_gradients import lower_epilogue_weight_grad, lower_input_grad, lower_weight_grad

    batch, geometry, groups = gradient_geometry(call)
    target = tvm.target.Target.current(allow_none=True) or cpu_target()
    lower = {
        WEIGHT_GRAD: lower_weight_grad,
        EPILOGUE_WEIGHT_GRAD: lower_epilogue_weight_grad,
        INPUT_GRAD: lower_input_grad,
    }
    return lower[call.op.name](bb, call, batch, geometry, groups, target)


def _conv2d_gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, w = call.args[:2]
    dz, dbias = _epilogue(_var, call, dy, bb)
    g = ops.geometry_of(call)
    common: dict[str, Any] = {
        "strides": g.strides,
        "padding": g.padding,
        "dilation": g.dilation,
        "groups": ops.groups_of(call),
    }
    dx = conv2d_input_grad(dz, w, input=(g.H, g.W), **common)
    dw = conv2d_weight_grad(x, dz, kernel=(g.KH, g.KW), **common)
    return [dx, dw, dbias, *([dz] if call.op.name == ops.CONV2D_ADD else [])]


def _dense_gradient(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, w = call.args[:2]
    dz, dbias = _epilogue(_var, call, dy, bb)
    (K, M), rows = static_shape(w), static_shape(x)[:-1]
    image = [rows[0], rows[1] if len(rows) == 2 else 1, 1]

    def images(t: relax.Expr, channels: int) -> relax.Expr:
        return bb.emit(relax.op.reshape(t, relax.ShapeExpr([*image, channels])))

    dz = images(dz, M)
    four = bb.emit(relax.op.reshape(w, relax.ShapeExpr([1, 1, K, M])))
    dx = bb.emit(conv2d_input_grad(dz, four, input=(image[1], 1)))
    dw = bb.emit(conv2d_weight_grad(images(x, K), dz, kernel=(1, 1)))
    return [relax.op.reshape(dx, x.ty.shape), relax.op.reshape(dw, w.ty.shape), dbias]


def _epilogue(y: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> tuple[relax.Expr, relax.Expr]:
    """dz and dbias; a linear layer's output is not read, so it need not be kept."""
    activation = ops.activation_of(call)
    both = bb.emit(epilogue.epilogue_grad(dy if activation.kind == "linear" else y, dy, activation))
    return bb.emit(relax.TupleGetItem(both, 0)), bb.emit(relax.TupleGetItem(both, 1))


def register() -> None:
    """Register the operators and the gradients that use them; once per process, later calls change nothing."""
    epilogue.register()
    ops.register_operator(WEIGHT_GRAD, ("data", "output_gradient"), _infer, _legalize)
    ops.register_operator(EPILOGUE_WEIGHT_GRAD, ("data", "output", "output_gradient"), _infer, _legalize)
    ops.register_operator(INPUT_GRAD, ("output_gradient", "weight"), _infer, _legalize)
    for name in (ops.CONV2D, ops.CONV2D_ADD, ops.GROUPED_CONV2D):
        _register_gradient(name, _conv2d_gradient)
    _register_gradient(ops.DENSE, _dense_gradient)


def _register_gradient(name: str, gradient: Any) -> None:
    if tvm.ir.Op.get(name).get_attr("FPrimalGradient") is None:
        relax.op.register_gradient(name, gradient)
