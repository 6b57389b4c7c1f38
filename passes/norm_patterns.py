"""Chains of operators that come to a normalisation, as the ONNX converters and earlier passes leave them.

Both are read backwards from their last operator, NHWC, float32. What a chain reads besides its input is constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from adr_tvm._tvm import Dataflow, constant, is_op, static_shape
from adr_tvm.activation import Activation
from adr_tvm.passes.fuse_epilogue import activation_after


@dataclass(frozen=True)
class InstanceNormChain:
    """activation((x - mean) / sqrt(variance + epsilon) * scale + shift + residual).

    Attributes:
        scale, shift: float32 [C].
        residual: tensor of the shape of x, or None.
    """

    x: relax.Expr
    epsilon: float
    scale: np.ndarray
    shift: np.ndarray
    residual: relax.Expr | None
    activation: Activation


@dataclass(frozen=True)
class LrnChain:
    """x / (bias + alpha * mean of squares in the window of channels) ^ beta."""

    x: relax.Expr
    before: int
    after: int
    alpha: float
    beta: float
    bias: float


def is_image(expr: relax.Expr) -> bool:
    """Whether the type is float32 [B, H, W, C] with H, W and C fixed."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None or str(ty.dtype) != "float32":
        return False
    return len(ty.shape) == 4 and None not in static_shape(expr)[1:]


class Chains:
    """Finds the chains in the functions of a module."""

    def __init__(self, dataflow: Dataflow):
        self.dataflow = dataflow

    def instance_norm(self, call: relax.Call) -> InstanceNormChain | None:
        """The chain that ends with ``call``; None where there is none."""
        if not isinstance(call.ty, relax.TensorType):
            return None
        if not is_image(call):
            return None
        channels = static_shape(call)[3]
        activation, residual, last = activation_after(call), None, self.value(call)
        if activation is not None:
            last = self._only(call.args[0])
        if is_op(last, "relax.add") and self._per_channel(last, channels) is None:
            for i in (0, 1):
                found = self._normalised(self._only(last.args[i]), channels)
                if found is not None and static_shape(last.args[1 - i]) == static_shape(call):
                    residual = last.args[1 - i]
                    break
        else:
            found = self._normalised(last, channels)
        if found is None:
            return None
        x, epsilon, scale, shift = found
        return InstanceNormChain(x, epsilon, scale, shift, residual, activation or Activation())

    def lrn(self, call: relax.Call) -> LrnChain | None:
        """The chain that ends with ``call``; None where there is none."""
        if not is_op(call, "relax.divide") or not is_image(call):
            return None
        x = call.args[0]
        total, beta = self._power(call.args[1])
        if not is_op(total, "relax.add") or (bias := self._scalar(total.args[1])) is None:
            return None
        scaled = self.value(total.args[0])
        if not is_op(scaled, "relax.multiply") or (alpha := self._scalar(scaled.args[1])) is None:
            return None
        squeezed = self.value(scaled.args[0])
        pool: Any = self.value(squeezed.args[0]) if is_op(squeezed, "relax.squeeze") else None
        if not is_op(pool, "relax.nn.avg_pool3d") or str(pool.attrs.layout) != "NCHWD":
            return None
        a, expanded = pool.attrs, self.value(pool.args[0])
        square: Any = self.value(expanded.args[0]) if is_op(expanded, "relax.expand_dims") else None
        if not is_op(square, "relax.multiply") or not all(self.same(arg, x) for arg in square.args):
            return None
        # Depth comes first in the attributes; the layout says that the channels stand for it.
        size, ones = int(a.pool_size[0]), [int(v) for v in (*a.pool_size[1:], *a.strides, *a.dilation)]
        before, *sides, after = (int(a.padding[i]) for i in (0, 1, 2, 4, 5, 3))
        if set(ones) != {1} or any(sides) or before + after + 1 != size or not (a.count_include_pad or size == 1):
            return None
        if not (alpha >= 0 and bias > 0):  # what is raised to a power must be positive
            return None
        return LrnChain(x, before, after, alpha, beta, bias)

    def value(self, expr: relax.Expr) -> Any:
        """What an expression is bound to, through aliases."""
        while isinstance(expr, relax.Var):
            bound = self.dataflow.value(expr)
            if bound is expr or hash(bound) == hash(expr):
                return expr
            expr = bound
        return expr

    def same(self, a: relax.Expr, b: relax.Expr) -> bool:
        """Whether two expressions are one variable, through aliases."""
        return hash(self._root(a)) == hash(self._root(b))

    def _root(self, expr: relax.Expr) -> relax.Expr:
        while isinstance(expr, relax.Var) and isinstance(self.dataflow.value(expr), relax.Var):
            bound = self.dataflow.value(expr)
            if hash(bound) == hash(expr):
                break
            expr = bound
        return expr

    def _only(self, expr: relax.Expr) -> Any:
        """The value of a variable that nothing else reads."""
        return self.value(expr) if self.dataflow.read_once(expr) else None

    def _scalar(self, expr: relax.Expr) -> float | None:
        v = constant(self.value(expr))
        return float(v.reshape(())) if v is not None and v.size == 1 else None

    def _per_channel(self, call: relax.Call, channels: int) -> np.ndarray | None:
        v = constant(self.value(call.args[1]))
        if v is None or v.size not in (1, channels) or v.shape[-1:] != (v.size,):
            return None
        return np.broadcast_to(v.reshape(-1), (channels,)).astype(np.float32)

    def _normalised(self, last: Any, channels: int) -> tuple[relax.Expr, float, np.ndarray, np.ndarray] | None:
        """(x, epsilon, scale, shift); a scale of 1 or a shift of 0 may have no operator."""
        shift, scale = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        if is_op(last, "relax.add") and (v := self._per_channel(last, channels)) is not None:
            shift, last = v, self._only(last.args[0])
        if is_op(last, "relax.multiply") and (v := self._per_channel(last, channels)) is not None:
            scale, last = v, self._only(last.args[0])
        if not is_op(last, "relax.divide"):
            return None
        centred, root = self.value(last.args[0]), self.value(last.args[1])
        if not is_op(centred, "relax.subtract") or not is_op(root, "relax.sqrt"):
            return None
        x, added = centred.args[0], self.value(root.args[0])
        if not is_op(added, "relax.add") or (epsilon := self._scalar(added.args[1])) is None:
            return None
        squares = self._mean_source(added.args[0])
        square: Any = None if squares is None else self.value(squares)
        if not is_op(square, "relax.square") or not self.same(square.args[0], last.args[0]):
            return None
        mean_of = self._mean_source(centred.args[1])
        return (x, epsilon, scale, shift) if mean_of is not None and self.same(mean_of, x) else None

    def _mean_source(self, expr: relax.Expr) -> relax.Expr | None:
        """What ``expr`` is the mean of over axes 1 and 2, kept, in one step or two."""
        axes: list[int] = []
        while is_op(mean := self.value(expr), "relax.mean") and mean.attrs.axis is not None and mean.attrs.keepdims:
            axes += [int(a) % 4 for a in mean.attrs.axis]
            expr = mean.args[0]
        return expr if sorted(axes) == [1, 2] else None

    def _power(self, expr: relax.Expr) -> tuple[Any, float]:
        """(s, beta) of s ^ beta as ``SimplifyPower`` leaves it."""
        found = self.value(expr)
        if is_op(found, "relax.power") and (exponent := self._scalar(found.args[1])) is not None:
            return self.value(found.args[0]), exponent
        if is_op(found, "relax.sqrt"):
            return self.value(found.args[0]), 0.5
        if is_op(found, "relax.multiply"):
            root, fourth = self.value(found.args[0]), self.value(found.args[1])
            if is_op(root, "relax.sqrt") and is_op(fourth, "relax.sqrt") and self.same(fourth.args[0], found.args[0]):
                return self.value(root.args[0]), 0.75
        return found, 1.0
