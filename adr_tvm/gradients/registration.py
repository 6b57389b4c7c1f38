"""Gradients are registered here, so that it is known for which operators this package has one, and when it applies.

TVM has gradients of its own for some operators that this package has better ones for; those here take precedence.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

Gradient = Callable[[relax.Var, relax.Call, relax.Expr, relax.BlockBuilder], list[relax.Expr]]
Refusal = Callable[[relax.Call], str | None]

LEVEL = 20  # TVM's own have 10
_registered: set[str] = set()
_refusals: dict[str, Refusal] = {}


def register_gradient(name: str, gradient: Gradient, refusal: Refusal | None = None) -> None:
    """Give an operator its gradient; once per process, later calls change nothing.

    Args:
        name: with the ``relax.`` prefix.
        gradient: from (variable, call, gradient of the result, builder) to the gradients of the arguments.
        refusal: why a call has no gradient all the same; None where it has one.
    """
    if name in _registered:
        return
    _registered.add(name)
    if refusal is not None:
        _refusals[name] = refusal
    relax.op.register_gradient(name, gradient, level=LEVEL)


def refused(call: relax.Call) -> str | None:
    """Why a call of an operator that has a gradient has none; None where it has one."""
    refusal = _refusals.get(call.op.name)
    return None if refusal is None else refusal(call)


def current_target() -> tvm.target.Target:
    """The target that operators are lowered for: that of the scope, or this machine."""
    from adr_tvm._tvm import cpu_target

    return tvm.target.Target.current(allow_none=True) or cpu_target()
