"""Updates of parameters for CUDA, in place, a thread for each entry (formulas: ``schedules/optimizer_update.py``)."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.optimizer_update import CONTROL, GO_ON, adam_entry, adam_scalars, sgd_entry

THREADS = 256


@functools.cache
def sgd_update(size: int, momentum: float, nesterov: bool, decay: float) -> tirx.PrimFunc:
    """Returns: PrimFunc of p float32 [size], with momentum b likewise, g likewise, control float32 [4]."""
    update = sgd_entry(momentum, nesterov, decay)

    @T.inline
    def body(P, B, G, C):
        for block in T.thread_binding(-(-size // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                if T.And(block * THREADS + t < size, C[GO_ON] != T.float32(0)):
                    update([P, B, G, C], block * THREADS + t)

    if momentum == 0:

        @T.prim_func(private=True)
        def plain(p: T.handle, g: T.handle, control: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            P = T.match_buffer(p, (T.int64(size),), "float32")
            G = T.match_buffer(g, (T.int64(size),), "float32")
            C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
            body(P, P, G, C)

        return plain

    @T.prim_func(private=True)
    def kernel(p: T.handle, b: T.handle, g: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        P = T.match_buffer(p, (T.int64(size),), "float32")
        B = T.match_buffer(b, (T.int64(size),), "float32")
        G = T.match_buffer(g, (T.int64(size),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        body(P, B, G, C)

    return kernel


@functools.cache
def adam_update(size: int, beta1: float, beta2: float, epsilon: float, decay: float, decoupled: bool) -> tirx.PrimFunc:
    """Returns: PrimFunc of p, m, v and g float32 [size], control float32 [4]."""
    update = adam_entry(beta1, beta2, epsilon, decay, decoupled)
    find_scalars = adam_scalars(beta1, beta2, decay, decoupled)

    @T.prim_func(private=True)
    def kernel(p: T.handle, m: T.handle, v: T.handle, g: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        P = T.match_buffer(p, (T.int64(size),), "float32")
        M = T.match_buffer(m, (T.int64(size),), "float32")
        V = T.match_buffer(v, (T.int64(size),), "float32")
        G = T.match_buffer(g, (T.int64(size),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        for block in T.thread_binding(-(-size // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                scalars = T.alloc_buffer((3,), "float32", scope="local")
                find_scalars(scalars, C)
                if T.And(block * THREADS + t < size, C[GO_ON] != T.float32(0)):
                    update([P, M, V, G, C, scalars], block * THREADS + t)

    return kernel
