"""Updates of parameters by gradient descent, in place, in one pass over memory; torch's formulas.

With parameter p, gradient g, learning rate r and the number t of the step (from 1):

- `sgd_update`: g' = g + decay p; with momentum b' = momentum b + g' and g'' = b' (nesterov: g' + momentum b');
  p' = p - r g''. At the first step b is 0, so that b' is g'.
- `adam_update`: g' = g + decay p (``decoupled``: p shrinks by 1 - r decay instead); m' = m + (1 - beta1) (g' - m);
  v' = beta2 v + (1 - beta2) g'^2; p' = p - r / (1 - beta1^t) m' / (sqrt(v' / (1 - beta2^t)) + epsilon).
  Kingma, Ba, "Adam" (ICLR 2015), algorithm 1; Loshchilov, Hutter, "Decoupled Weight Decay" (ICLR 2019), algorithm 2.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.sliding_window import loop_of

LANES = 16
CHUNK = 16 * 1024  # entries of a task


def _loops(size: int):
    """(loop over tasks, their number, inline ``(update, task)`` that runs ``update(index)`` for each entry)."""
    tasks = -(-size // CHUNK)

    @T.inline
    def entries(update, task):
        count = T.meta_var(T.min(T.int64(CHUNK), size - task * CHUNK))
        for v in range(count // LANES):
            for l in T.vectorized(LANES):
                update(task * CHUNK + v * LANES + l)
        for l in range(count % LANES):
            update(task * CHUNK + count // LANES * LANES + l)

    return loop_of(tasks, CHUNK * 4), tasks, entries


@functools.cache
def sgd_update(size: int, momentum: float, nesterov: bool, decay: float) -> tirx.PrimFunc:
    """Returns: PrimFunc of p float32 [size], with momentum b likewise, g likewise, r and t float32 [1]."""
    loop, tasks, entries = _loops(size)

    def decayed(P, G, i):
        return G[i] + tirx.const(decay, "float32") * P[i] if decay else G[i]

    def descend(P, G, R):
        return lambda i: T.buffer_store(P, P[i] - R[0] * decayed(P, G, i), [i])

    def descend_with_momentum(P, B, G, R):
        def update(i) -> None:
            T.buffer_store(B, T.float32(momentum) * B[i] + decayed(P, G, i), [i])
            step = decayed(P, G, i) + T.float32(momentum) * B[i] if nesterov else B[i]
            T.buffer_store(P, P[i] - R[0] * step, [i])

        return update

    if momentum == 0:

        @T.prim_func(private=True)
        def plain(p: T.handle, g: T.handle, rate: T.handle, count: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            P = T.match_buffer(p, (T.int64(size),), "float32")
            G = T.match_buffer(g, (T.int64(size),), "float32")
            R = T.match_buffer(rate, (T.int64(1),), "float32")
            N = T.match_buffer(count, (T.int64(1),), "float32")

            update = T.meta_var(descend(P, G, R))
            for task in loop(T.int64(tasks)):
                entries(update, task)

        return plain

    @T.prim_func(private=True)
    def kernel(p: T.handle, b: T.handle, g: T.handle, rate: T.handle, count: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        P = T.match_buffer(p, (T.int64(size),), "float32")
        B = T.match_buffer(b, (T.int64(size),), "float32")
        G = T.match_buffer(g, (T.int64(size),), "float32")
        R = T.match_buffer(rate, (T.int64(1),), "float32")
        N = T.match_buffer(count, (T.int64(1),), "float32")

        update = T.meta_var(descend_with_momentum(P, B, G, R))
        for task in loop(T.int64(tasks)):
            entries(update, task)

    return kernel


@functools.cache
def adam_update(size: int, beta1: float, beta2: float, epsilon: float, decay: float, decoupled: bool) -> tirx.PrimFunc:
    """Returns: PrimFunc of p, m, v and g float32 [size], r and t float32 [1]."""
    loop, tasks, entries = _loops(size)

    def decayed(P, G, i):
        return G[i] + tirx.const(decay, "float32") * P[i] if decay and not decoupled else G[i]

    def unbias(beta, N):
        """1 - beta^t: in float32 it would lose four digits at the first steps."""
        return T.float64(1) - T.pow(T.float64(beta), T.Cast("float64", N[0]))

    def descend(P, M, V, G, scalars):
        def update(i) -> None:
            g = decayed(P, G, i)
            T.buffer_store(M, M[i] + T.float32(1.0 - beta1) * (g - M[i]), [i])
            T.buffer_store(V, T.float32(beta2) * V[i] + T.float32(1.0 - beta2) * g * g, [i])
            root = T.sqrt(V[i]) * scalars[1] + T.float32(epsilon)
            T.buffer_store(P, P[i] * scalars[2] - scalars[0] * M[i] / root, [i])

        return update

    @T.prim_func(private=True)
    def kernel(p: T.handle, m: T.handle, v: T.handle, g: T.handle, rate: T.handle, count: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        P = T.match_buffer(p, (T.int64(size),), "float32")
        M = T.match_buffer(m, (T.int64(size),), "float32")
        V = T.match_buffer(v, (T.int64(size),), "float32")
        G = T.match_buffer(g, (T.int64(size),), "float32")
        R = T.match_buffer(rate, (T.int64(1),), "float32")
        N = T.match_buffer(count, (T.int64(1),), "float32")
        scalars = T.alloc_buffer((3,), "float32")
        scalars[0] = T.Cast("float32", T.Cast("float64", R[0]) / unbias(beta1, N))
        scalars[1] = T.Cast("float32", T.float64(1) / T.sqrt(unbias(beta2, N)))
        scalars[2] = T.float32(1) - R[0] * T.float32(decay if decoupled else 0.0)

        update = T.meta_var(descend(P, M, V, G, scalars))
        for task in loop(T.int64(tasks)):
            entries(update, task)

    return kernel
