"""Updates of parameters by gradient descent, in place, in one pass over memory; torch's formulas.

``control`` is float32 [4]: learning rate r, number t of the step (from 1), a factor s, and whether to go on. Kernels
take s g for the gradient (s = 1 / loss scale, else 1), and change nothing where the last entry is 0. With parameter p
and gradient g after that:

- `sgd_update`: g' = g + decay p; with momentum b' = momentum b + g' and g'' = b' (nesterov: g' + momentum b');
  p' = p - r g''. At the first step b is 0, so that b' is g'.
- `adam_update`: g' = g + decay p (``decoupled``: p shrinks by 1 - r decay instead); m' = m + (1 - beta1) (g' - m);
  v' = beta2 v + (1 - beta2) g'^2; p' = p - r / (1 - beta1^t) m' / (sqrt(v' / (1 - beta2^t)) + epsilon).
  Kingma, Ba, "Adam" (ICLR 2015), algorithm 1; Loshchilov, Hutter, "Decoupled Weight Decay" (ICLR 2019), algorithm 2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.sliding_window import loop_of

RATE, COUNT, FACTOR, GO_ON = range(4)
CONTROL = 4  # entries of ``control``
LANES = 16
CHUNK = 16 * 1024  # entries of a task


def _over(size: int, update: Callable[[list[Any], Any], None]) -> tuple[Any, int, Any]:
    """(loop over tasks, their number, inline ``(buffers, task)``: the update of the task's entries).

    Args:
        update: emits the update of the vector or scalar at an index.
    """
    tasks = -(-size // CHUNK)

    def at(buffers, start, lanes):
        update(buffers, across(start, lanes))

    @T.inline
    def entries(buffers, task):
        count = T.meta_var(T.min(T.int64(CHUNK), size - task * CHUNK))
        for v in range(count // LANES):
            at(buffers, task * CHUNK + v * LANES, LANES)
        for i in range(count % LANES):
            at(buffers, task * CHUNK + count // LANES * LANES + i, 1)

    return loop_of(tasks, CHUNK * 4), tasks, entries


def _f(value: float) -> tirx.PrimExpr:
    return tirx.const(value, "float32")


def sgd_entry(momentum: float, nesterov: bool, decay: float) -> Callable[[list[Any], Any], None]:
    """What emits the update of an entry (or a vector of them) of the buffers p, b, g and control."""

    def update(buffers, i):
        P, B, G, C = buffers
        p = T.bind(P[i])
        g = C[FACTOR] * G[i]
        g = T.bind(g + _f(decay) * p if decay else g)
        if momentum:
            b = T.bind(_f(momentum) * B[i] + g)
            T.buffer_store(B, b, [i])
            g = T.bind(g + _f(momentum) * b) if nesterov else b
        T.buffer_store(P, p - C[RATE] * g, [i])

    return update


@functools.cache
def sgd_update(size: int, momentum: float, nesterov: bool, decay: float) -> tirx.PrimFunc:
    """Returns: PrimFunc of p float32 [size], with momentum b likewise, g likewise, control float32 [4]."""
    loop, tasks, entries = _over(size, sgd_entry(momentum, nesterov, decay))
    if momentum == 0:

        @T.prim_func(private=True)
        def plain(p: T.handle, g: T.handle, control: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            P = T.match_buffer(p, (T.int64(size),), "float32")
            G = T.match_buffer(g, (T.int64(size),), "float32")
            C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
            if C[GO_ON] != T.float32(0):
                for task in loop(T.int64(tasks)):
                    entries([P, P, G, C], task)

        return plain

    @T.prim_func(private=True)
    def kernel(p: T.handle, b: T.handle, g: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        P = T.match_buffer(p, (T.int64(size),), "float32")
        B = T.match_buffer(b, (T.int64(size),), "float32")
        G = T.match_buffer(g, (T.int64(size),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        if C[GO_ON] != T.float32(0):
            for task in loop(T.int64(tasks)):
                entries([P, B, G, C], task)

    return kernel


def adam_entry(
    beta1: float, beta2: float, epsilon: float, decay: float, decoupled: bool
) -> Callable[[list[Any], Any], None]:
    """What emits the update of an entry (or a vector of them) of the buffers p, m, v, g, control and scalars."""

    def update(buffers, i):
        P, M, V, G, C, scalars = buffers
        p = T.bind(P[i])
        g = C[FACTOR] * G[i]
        g = T.bind(g + _f(decay) * p if decay and not decoupled else g)
        m = T.bind(M[i] + _f(1.0 - beta1) * (g - M[i]))
        v = T.bind(_f(beta2) * V[i] + _f(1.0 - beta2) * g * g)
        T.buffer_store(M, m, [i])
        T.buffer_store(V, v, [i])
        root = T.sqrt(v) * scalars[1] + _f(epsilon)
        T.buffer_store(P, p * scalars[2] - scalars[0] * m / root, [i])

    return update


def adam_scalars(beta1: float, beta2: float, decay: float, decoupled: bool) -> Callable[[Any, Any], None]:
    """What emits ``scalars`` [3] of control: rate and root without bias, share of p that stays."""

    def unbias(beta, C):
        """1 - beta^t: in float32 it would lose four digits at the first steps."""
        return T.float64(1) - T.pow(T.float64(beta), T.Cast("float64", C[COUNT]))

    def emit(scalars, C):
        T.buffer_store(scalars, T.Cast("float32", T.Cast("float64", C[RATE]) / unbias(beta1, C)), [0])
        T.buffer_store(scalars, T.Cast("float32", T.float64(1) / T.sqrt(unbias(beta2, C))), [1])
        T.buffer_store(scalars, T.float32(1) - C[RATE] * T.float32(decay if decoupled else 0.0), [2])

    return emit


@functools.cache
def adam_update(size: int, beta1: float, beta2: float, epsilon: float, decay: float, decoupled: bool) -> tirx.PrimFunc:
    """Returns: PrimFunc of p, m, v and g float32 [size], control float32 [4]."""
    loop, tasks, entries = _over(size, adam_entry(beta1, beta2, epsilon, decay, decoupled))
    find_scalars = adam_scalars(beta1, beta2, decay, decoupled)

    @T.prim_func(private=True)
    def kernel(p: T.handle, m: T.handle, v: T.handle, g: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        P = T.match_buffer(p, (T.int64(size),), "float32")
        M = T.match_buffer(m, (T.int64(size),), "float32")
        V = T.match_buffer(v, (T.int64(size),), "float32")
        G = T.match_buffer(g, (T.int64(size),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        scalars = T.alloc_buffer((3,), "float32")
        find_scalars(scalars, C)
        if C[GO_ON] != T.float32(0):
            for task in loop(T.int64(tasks)):
                entries([P, M, V, G, C, scalars], task)

    return kernel
