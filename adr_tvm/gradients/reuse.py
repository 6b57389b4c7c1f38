"""Gradients of ``adr.reuse_conv2d`` and ``adr.reuse_dense`` with ids frozen (``docs/algorithm.md``, Backward).

- ``relax.adr.reuse_weight_grad(dz, ids, centroids)`` -> dW [KH, KW, C, M], from cluster sums of dZ;
- ``relax.adr.reuse_grad(dz, w, ids, centroids)`` -> (dW, dX), both from one pass over the members of the clusters.

dz float32 [B, OH, OW, M], w float32 [KH, KW, C, M], ids and centroids as the forward pass returns them in training.
Attributes: those of the setting, strides, padding, dilation, input = [H, W, C] and kernel = [KH, KW]. A dense layer is
a 1x1 convolution. Ning, Guan, Shen, "Adaptive Deep Reuse" (ICDE 2019), on backward propagation.

x gets its gradient as the attribute ``input_gradient`` of the forward call says: ``averaged`` over the members of a
cluster, the exact derivative; ``straight-through``, dX = dZ W^T, as if the layer were dense; or ``sampled``, that of
the first b = ceil(B / 4) images alone, times B / b: batches are drawn at random, so its mean is the straight-through
one. With ``forward_only`` both gradients are those of the dense layer, dW = X^T dZ from x itself.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_target, dict_attrs, static_shape, tensor_type
from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import conv2d, epilogue
from adr_tvm.settings import ReuseSetting

WEIGHT_GRAD, GRAD = "relax.adr.reuse_weight_grad", "relax.adr.reuse_grad"
SAMPLED_ONE_IN = 4  # images


def reuse_grad(
    dz: relax.Expr,
    w: relax.Expr | None,
    ids: relax.Expr,
    centroids: relax.Expr,
    geometry: ConvGeometry,
    setting: ReuseSetting,
) -> relax.Call:
    """A call of ``adr.reuse_grad``, or, without w, of ``adr.reuse_weight_grad``."""
    g = geometry
    attrs = dict_attrs(
        strides=list(g.strides),
        padding=list(g.padding),
        dilation=list(g.dilation),
        input=[g.H, g.W, g.C],
        kernel=[g.KH, g.KW],
        **ops.setting_attrs(setting),
    )
    args = [dz, ids, centroids] if w is None else [dz, w, ids, centroids]
    return relax.Call(tvm.ir.Op.get(WEIGHT_GRAD if w is None else GRAD), args, attrs)


def gradient_geometry(call: relax.Call) -> tuple[int, ConvGeometry]:
    """(batch, geometry of the layer) of a call of either operator.

    Raises:
        ValueError: a shape is symbolic.
    """
    dz = static_shape(call.args[0])
    if None in dz:
        raise ValueError(f"{call.op.name} of {call.args[0].ty}: gradients need static shapes")
    (H, W, C), (KH, KW) = ([int(v) for v in call.attrs[name]] for name in ("input", "kernel"))
    ints: dict[str, Any] = {k: tuple(int(v) for v in call.attrs[k]) for k in ("strides", "padding", "dilation")}
    return dz[0], ConvGeometry(H, W, C, KH, KW, dz[3], **ints)


def _infer(call: relax.Call) -> relax.Type:
    batch, g = gradient_geometry(call)
    dw = tensor_type([g.KH, g.KW, g.C, g.M])
    return dw if call.op.name == WEIGHT_GRAD else relax.TupleType([dw, tensor_type([batch, g.H, g.W, g.C])])


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    from adr_tvm.passes.lowering_reuse_gradients import lower_reuse_gradients

    return lower_reuse_gradients(bb, call, tvm.target.Target.current(allow_none=True) or cpu_target())


def _gradient(var: relax.Var, call: relax.Call, out_gradients: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """Gradients of x, w and bias; planes, thresholds and a table of centroids, which are constants, get none."""
    if not ops.is_training(call):
        raise ValueError(f"{ops.layer_name(call)}: has a gradient only with training=True")
    x, w, _, planes, thresholds, *stream = call.args
    activation, g, setting = ops.activation_of(call), ops.geometry_of(call), ops.setting_of(call)
    y, dy = (bb.emit(relax.TupleGetItem(v, 0)) for v in (var, out_gradients))
    ids, centroids = (bb.emit(relax.TupleGetItem(var, i)) for i in (2, 3))
    epilogue_gradients = bb.emit(epilogue.epilogue_grad(dy if activation.kind == "linear" else y, dy, activation))
    dz, dbias = (bb.emit(relax.TupleGetItem(epilogue_gradients, i)) for i in (0, 1))
    batch = static_shape(x)[0]
    dz = _reshaped(bb, dz, [batch, g.OH, g.OW, g.M])
    four = _reshaped(bb, w, [g.KH, g.KW, g.C, g.M])
    if int(call.attrs["forward_only"]):
        images = _reshaped(bb, x, [batch, g.H, g.W, g.C])
        dw = bb.emit(conv2d.conv2d_weight_grad(images, dz, kernel=(g.KH, g.KW), **_windows(g)))
        dx = _dense_input_gradient(bb, dz, four, g, batch)
    elif str(call.attrs["input_gradient"]) == "averaged":
        both = bb.emit(reuse_grad(dz, four, ids, centroids, g, setting))
        dw, dx = (bb.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
    else:
        dw = bb.emit(reuse_grad(dz, None, ids, centroids, g, setting))
        sampled = str(call.attrs["input_gradient"]) == "sampled"
        dx = _dense_input_gradient(bb, dz, four, g, -(-batch // SAMPLED_ONE_IN) if sampled else batch)
    dx, dw = _reshaped(bb, dx, static_shape(x)), _reshaped(bb, dw, static_shape(w))
    none = [relax.op.grad.no_grad(t) for t in stream]
    return [dx, dw, dbias, *(bb.emit(relax.op.zeros_like(t)) for t in (planes, thresholds)), *none]


def _dense_input_gradient(
    bb: relax.BlockBuilder, dz: relax.Expr, w: relax.Expr, g: ConvGeometry, images: int
) -> relax.Expr:
    """dZ W^T of the first images times batch / images, 0 for the others."""
    shape, batch = _windows(g), static_shape(dz)[0]
    if images == batch:
        return bb.emit(conv2d.conv2d_input_grad(dz, w, input=(g.H, g.W), **shape))
    scaled = bb.emit(relax.op.multiply(w, relax.const(batch / images, "float32")))
    first = bb.emit(relax.op.strided_slice(dz, axes=[0], begin=[0], end=[images]))
    found = bb.emit(conv2d.conv2d_input_grad(first, scaled, input=(g.H, g.W), **shape))
    rest = bb.emit(relax.op.zeros(relax.ShapeExpr([batch - images, g.H, g.W, g.C]), "float32"))
    return bb.emit(relax.op.concat([found, rest], axis=0))


def _windows(g: ConvGeometry) -> dict[str, Any]:
    return {"strides": g.strides, "padding": g.padding, "dilation": g.dilation}


def _reshaped(bb: relax.BlockBuilder, tensor: relax.Expr, shape: Any) -> relax.Expr:
    same = list(static_shape(tensor)) == list(shape)
    return tensor if same else bb.emit(relax.op.reshape(tensor, relax.ShapeExpr(list(shape))))


def register() -> None:
    """Register the operators and gradients; once per process."""
    epilogue.register()
    conv2d.register()
    ops.register_operator(WEIGHT_GRAD, ("output_gradient", "ids", "centroids"), _infer, _legalize)
    ops.register_operator(GRAD, ("output_gradient", "weight", "ids", "centroids"), _infer, _legalize)
    for name in ops.REUSE_OPS:
        if tvm.ir.Op.get(name).get_attr("FPrimalGradient") is None:
            relax.op.register_gradient(name, _gradient)
