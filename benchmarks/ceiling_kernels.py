"""TIR kernels that reach what a processor can do: multiply-adds from registers, and streams from memory."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

CHAINS = 12  # independent sums: two FMA units times a latency of four to six cycles
STREAMS = 4  # vectors of a stream in one step


@functools.cache
def fma_kernel(threads: int, lanes: int, steps: int) -> tirx.PrimFunc:
    """``threads * CHAINS * lanes * steps`` fused multiply-adds; x holds factor and summand.

    Args:
        lanes: floats in a vector.
    """

    @T.prim_func
    def fma(x: T.Buffer((2, lanes), "float32"), y: T.Buffer((threads, CHAINS, lanes), "float32")):
        T.func_attr({"global_symbol": "fma", "tirx.noalias": True})
        for t in T.parallel(threads):
            sums = T.alloc_buffer((CHAINS, lanes), "float32", scope="local")
            for c in T.unroll(CHAINS):
                for j in T.vectorized(lanes):
                    sums[c, j] = T.Cast("float32", c)
            for _ in range(steps):
                for c in T.unroll(CHAINS):
                    for j in T.vectorized(lanes):
                        sums[c, j] = sums[c, j] * x[0, j] + x[1, j]
            for c in T.unroll(CHAINS):
                for j in T.vectorized(lanes):
                    y[t, c, j] = sums[c, j]

    return fma


@functools.cache
def triad_kernel(threads: int, lanes: int, blocks: int, repeats: int) -> tirx.PrimFunc:
    """STREAM's triad a = b + s c over arrays [threads, blocks * STREAMS * lanes], ``repeats`` times."""

    @T.prim_func
    def triad(
        b: T.Buffer((threads, blocks, STREAMS, lanes), "float32"),
        c: T.Buffer((threads, blocks, STREAMS, lanes), "float32"),
        a: T.Buffer((threads, blocks, STREAMS, lanes), "float32"),
    ):
        T.func_attr({"global_symbol": "triad", "tirx.noalias": True})
        for t in T.parallel(threads):
            for r in range(repeats):
                for i in range(blocks):
                    for k in T.unroll(STREAMS):
                        for j in T.vectorized(lanes):
                            # The factor changes, so that no repetition can be left out.
                            a[t, i, k, j] = b[t, i, k, j] + T.Cast("float32", r) * c[t, i, k, j]

    return triad


@functools.cache
def read_kernel(threads: int, lanes: int, blocks: int, repeats: int) -> tirx.PrimFunc:
    """Sums over an array [threads, blocks * CHAINS * lanes], ``repeats`` times: reads alone, as of weights."""

    @T.prim_func
    def read(
        b: T.Buffer((threads, blocks, CHAINS, lanes), "float32"),
        y: T.Buffer((threads, CHAINS, lanes), "float32"),
    ):
        T.func_attr({"global_symbol": "read", "tirx.noalias": True})
        for t in T.parallel(threads):
            sums = T.alloc_buffer((CHAINS, lanes), "float32", scope="local")
            for c in T.unroll(CHAINS):
                for j in T.vectorized(lanes):
                    sums[c, j] = T.float32(0)
            for r in range(repeats):
                for i in range(blocks):
                    for c in T.unroll(CHAINS):
                        for j in T.vectorized(lanes):
                            sums[c, j] = sums[c, j] * T.Cast("float32", r) + b[t, i, c, j]
            for c in T.unroll(CHAINS):
                for j in T.vectorized(lanes):
                    y[t, c, j] = sums[c, j]

    return read
