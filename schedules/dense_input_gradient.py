"""Gradient of a dense layer's input, dX[n, k] = sum over m of dZ[n, m] W[k, m]: both operands run along m.

Sums are vectors over m, added up across their lanes at the end. W is read once and as it lies: a layer of few rows is
bound by that, and turning W round as ``input_gradient`` does would read it, write it and read it again.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import Accumulators, across
from adr_tvm.schedules.register_tile import Isa

MAX_ROWS = 256  # of dZ, up to which this pays
TASK_FLOATS = 64 * 1024  # of W in a task: they stay in L2 while the rows of dZ go by


def is_few_rows(geometry: ConvGeometry, batch: int) -> bool:
    """Whether a convolution is a dense layer for this kernel."""
    g = geometry
    return (g.H, g.W, g.KH, g.KW, *g.padding) == (1, 1, 1, 1, 0, 0, 0, 0) and batch <= MAX_ROWS


@functools.cache
def dense_input_gradient(rows: int, K: int, M: int, isa: Isa) -> tirx.PrimFunc:
    """Returns: PrimFunc of dZ float32 [N, 1, 1, M], W float32 [1, 1, K, M] and dX float32 [N, 1, 1, K]."""
    lanes = min(isa.lanes, 1 << (M.bit_length() - 1))
    # Sums for four rows of dZ or all, by as many rows of W as leave registers for the operands.
    RN = min(4, rows)
    RK = min(K, max(1, (isa.registers - 2 - RN) // (RN + 1)))
    chunk = RK * max(1, TASK_FLOATS // (M * RK))
    tasks = -(-K // chunk)

    def total(vector, width):
        """The sum over the lanes, halves added to halves."""
        while width > 1:
            width //= 2
            low, high = T.Shuffle([vector], list(range(width))), T.Shuffle([vector], list(range(width, 2 * width)))
            vector = T.bind(low + high)
        return vector

    def rest(DZ, W, n, k):
        return [DZ[n, 0, 0, m] * W[0, 0, k, m] for m in range(M // lanes * lanes, M)]

    def store(acc, DZ, W, DX, n, k):
        for i in range(RN):
            for j in range(RK):
                value: Any = total(acc.vector(i, j), lanes)
                for product in rest(DZ, W, n + i, k + j):
                    value = T.bind(value + product)
                T.buffer_store(DX, value, [n + i, 0, 0, k + j])

    @T.inline
    def tile(DZ, W, DX, n, k):
        acc = T.meta_var(Accumulators(RN, RK, lanes))
        acc.clear()
        for v in range(M // lanes):
            acc.add_outer(
                lambda i: DZ[n + i, 0, 0, across(v * lanes, lanes)], lambda j: W[0, 0, k + j, across(v * lanes, lanes)]
            )
        store(acc, DZ, W, DX, n, k)

    @T.prim_func(private=True)
    def kernel(dz: T.handle, w: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        DZ = T.match_buffer(dz, (T.int64(rows), T.int64(1), T.int64(1), T.int64(M)), "float32")
        W = T.match_buffer(w, (T.int64(1), T.int64(1), T.int64(K), T.int64(M)), "float32")
        DX = T.match_buffer(dx, (T.int64(rows), T.int64(1), T.int64(1), T.int64(K)), "float32")
        for task in T.parallel(T.int64(tasks)):
            # The last tiles overlap those before: what both compute is the same.
            for n in range(-(-rows // RN)):
                for q in range(T.min(chunk // RK, (K - task * chunk + (RK - 1)) // RK)):
                    tile(DZ, W, DX, T.min(n * RN, rows - RN), T.min(task * chunk + q * RK, K - RK))

    return kernel
