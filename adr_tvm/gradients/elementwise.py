"""Gradients of functions of single entries: activations, and what exporters write them with.

Each is a composition of Relax operators, which TVM fuses into one loop. At the kinks they are what torch has: relu' = 0
at 0, relu6' and hardtanh' (``clip``) = 0 at both edges, leaky_relu' = slope at 0. TVM's own relu' is 1 at 0, where many
entries lie behind another ReLU or a maximum pooling; so it is replaced. It has those of silu, sigmoid, tanh, exp, log,
sqrt and abs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax
from tvm.relax import op

from adr_tvm.gradients.registration import register_gradient


def _const(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def _where(condition: relax.Expr, dy: relax.Expr) -> relax.Expr:
    return op.where(condition, dy, _const(0))


def _between(x: relax.Expr, low: float, high: float, dy: relax.Expr) -> relax.Expr:
    if low > -math.inf:
        dy = _where(op.greater(x, _const(low)), dy)
    return _where(op.less(x, _const(high)), dy) if high < math.inf else dy


def _relu(var: relax.Var, _call: relax.Call, dy: relax.Expr, _bb: Any) -> list[relax.Expr]:
    return [_where(op.greater(var, _const(0)), dy)]


def _relu6(var: relax.Var, _call: relax.Call, dy: relax.Expr, _bb: Any) -> list[relax.Expr]:
    return [_between(var, 0.0, 6.0, dy)]


def _clip(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: Any) -> list[relax.Expr]:
    x, *bounds = call.args
    low, high = (float(bound.value) for bound in bounds)
    return [_between(x, low, high, dy), *(op.grad.no_grad(bound) for bound in bounds)]


def _leaky_relu(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: Any) -> list[relax.Expr]:
    x, slope = call.args[0], float(call.attrs.alpha)
    return [op.where(op.greater(x, _const(0)), dy, op.multiply(dy, _const(slope)))]


def _of_input(slope: Callable[[relax.Expr], relax.Expr]) -> Any:
    """The gradient of a function whose derivative is ``slope`` of its argument."""
    return lambda _var, call, dy, _bb: [op.multiply(dy, slope(call.args[0]))]


def _scaled(x: relax.Expr, factor: float) -> relax.Expr:
    return op.multiply(x, _const(factor))


def _normal_density(x: relax.Expr, scale: float) -> relax.Expr:
    """scale exp(-x^2 / 2)."""
    return _scaled(op.exp(_scaled(op.multiply(x, x), -0.5)), scale)


def _gelu_slope(x: relax.Expr) -> relax.Expr:
    """gelu(x) = x F(x), F the normal distribution function."""
    share = op.add(_scaled(op.erf(_scaled(x, 1 / math.sqrt(2))), 0.5), _const(0.5))
    return op.add(share, op.multiply(x, _normal_density(x, 1 / math.sqrt(2 * math.pi))))


def _gelu_tanh_slope(x: relax.Expr) -> relax.Expr:
    """gelu(x) = x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    factor = math.sqrt(2 / math.pi)
    square = op.multiply(x, x)
    t = op.tanh(op.multiply(x, op.add(_scaled(square, 0.044715 * factor), _const(factor))))
    inner = op.add(_scaled(square, 3 * 0.044715 * factor), _const(factor))
    curve = op.multiply(op.multiply(x, inner), op.subtract(_const(1), op.multiply(t, t)))
    return _scaled(op.add(op.add(t, _const(1)), curve), 0.5)


def _erf_slope(x: relax.Expr) -> relax.Expr:
    return _scaled(op.exp(op.negative(op.multiply(x, x))), 2 / math.sqrt(math.pi))


def _rsqrt(var: relax.Var, _call: relax.Call, dy: relax.Expr, _bb: Any) -> list[relax.Expr]:
    return [op.multiply(_scaled(dy, -0.5), op.multiply(var, op.multiply(var, var)))]


def _softplus(_var: relax.Var, call: relax.Call, dy: relax.Expr, _bb: Any) -> list[relax.Expr]:
    """softplus(x) = log(1 + exp(beta x)) / beta, and x where beta x > threshold."""
    x, a = call.args[0], call.attrs
    scaled = _scaled(x, float(a.beta))
    return [op.where(op.greater(scaled, _const(float(a.threshold))), dy, op.multiply(dy, op.sigmoid(scaled)))]


def register() -> None:
    """Register the gradients; once per process, later calls change nothing."""
    register_gradient("relax.nn.relu", _relu)
    register_gradient("relax.nn.relu6", _relu6)
    register_gradient("relax.clip", _clip)
    register_gradient("relax.nn.leakyrelu", _leaky_relu)
    register_gradient("relax.nn.gelu", _of_input(_gelu_slope))
    register_gradient("relax.nn.gelu_tanh", _of_input(_gelu_tanh_slope))
    register_gradient("relax.nn.softplus", _softplus)
    register_gradient("relax.erf", _of_input(_erf_slope))
    register_gradient("relax.rsqrt", _rsqrt)
    register_gradient("relax.square", _of_input(lambda x: _scaled(x, 2.0)))
