"""Gradients of normalisations by statistics of one example: layer, group and RMS normalisation.

With x' = (x - mean) r, r = 1 / sqrt(variance + epsilon), over some axes and y = x' gamma + beta: g = dy gamma,
dx = r (g - mean(g) - x' mean(g x')), dgamma = sum of dy x', dbeta = sum of dy, over the axes that gamma has not (Ba,
Kiros, Hinton, "Layer Normalization", 2016). RMS normalisation has no mean, and mean(g) is left out. Compositions of
Relax operators.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax
from tvm.relax import op

from adr_tvm._tvm import static_shape
from adr_tvm.gradients.registration import register_gradient


def _backward(
    bb: relax.BlockBuilder, x: relax.Expr, g: relax.Expr, axes: Sequence[int], epsilon: float, centred: bool
) -> tuple[relax.Expr, relax.Expr]:
    """(dx, x') of the normalisation over ``axes``, g the gradient of x'."""
    axes = list(axes)
    if centred:
        x = bb.emit(op.subtract(x, bb.emit(op.mean(x, axes, keepdims=True))))
    variance = bb.emit(op.mean(bb.emit(op.multiply(x, x)), axes, keepdims=True))
    r = bb.emit(op.divide(relax.const(1.0), op.sqrt(op.add(variance, relax.const(epsilon, "float32")))))
    normal = bb.emit(op.multiply(x, r))
    share = bb.emit(op.mean(bb.emit(op.multiply(g, normal)), axes, keepdims=True))
    inner = op.subtract(g, op.multiply(normal, share))
    if centred:
        inner = op.subtract(inner, bb.emit(op.mean(g, axes, keepdims=True)))
    return bb.emit(op.multiply(inner, r)), normal


def _axes(call: relax.Call, rank: int) -> list[int]:
    return sorted(int(axis) % rank for axis in call.attrs.axes)


def _summed(bb: relax.BlockBuilder, value: relax.Expr, axes: Sequence[int], like: relax.Expr) -> relax.Expr:
    """The sum over ``axes``, in the shape of a parameter."""
    total = bb.emit(op.sum(value, list(axes))) if axes else value
    return op.reshape(total, like.ty.shape)


def _last_axes_refusal(call: relax.Call) -> str | None:
    rank = len(static_shape(call.args[0]))
    axes = _axes(call, rank)
    return None if axes == list(range(rank - len(axes), rank)) else "not over the last axes"


def _layer_norm(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, gamma, beta = call.args
    rank = len(static_shape(x))
    axes = _axes(call, rank)
    others = [axis for axis in range(rank) if axis not in axes]
    g = bb.emit(op.multiply(dy, gamma))
    dx, normal = _backward(bb, x, g, axes, float(call.attrs.epsilon), centred=True)
    dgamma = _summed(bb, bb.emit(op.multiply(dy, normal)), others, gamma)
    return [dx, dgamma, _summed(bb, dy, others, beta)]


def _rms_norm(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, gamma = call.args
    rank = len(static_shape(x))
    axes = _axes(call, rank)
    others = [axis for axis in range(rank) if axis not in axes]
    g = bb.emit(op.multiply(dy, gamma))
    dx, normal = _backward(bb, x, g, axes, float(call.attrs.epsilon), centred=False)
    return [dx, _summed(bb, bb.emit(op.multiply(dy, normal)), others, gamma)]


def _group_norm(_var: relax.Var, call: relax.Call, dy: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """Channels [C] become [groups, C / groups], which moves the axes behind them by one."""
    x, gamma, beta = call.args
    dims, a = list(x.ty.shape), call.attrs
    rank, channel, groups = len(dims), int(a.channel_axis) % len(dims), int(a.num_groups)
    C = static_shape(x)[channel]
    split = relax.ShapeExpr([*dims[:channel], groups, C // groups, *dims[channel + 1 :]])
    axes = [channel + 1, *(axis + (axis > channel) for axis in _axes(call, rank))]
    others = [axis for axis in range(rank) if axis != channel]
    broadcast = relax.ShapeExpr([C if axis == channel else 1 for axis in range(rank)])
    g = bb.emit(op.multiply(dy, bb.emit(op.reshape(gamma, broadcast))))
    x_parts, g_parts = (bb.emit(op.reshape(tensor, split)) for tensor in (x, g))
    dx, normal = _backward(bb, x_parts, g_parts, axes, float(a.epsilon), centred=True)
    normal = bb.emit(op.reshape(normal, x.ty.shape))
    dgamma = _summed(bb, bb.emit(op.multiply(dy, normal)), others, gamma)
    return [op.reshape(dx, x.ty.shape), dgamma, _summed(bb, dy, others, beta)]


def register() -> None:
    """Register the gradients; once per process, later calls change nothing."""
    register_gradient("relax.nn.layer_norm", _layer_norm, _last_axes_refusal)
    register_gradient("relax.nn.rms_norm", _rms_norm, _last_axes_refusal)
    register_gradient("relax.nn.group_norm", _group_norm)
