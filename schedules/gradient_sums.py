"""Before and after ``cluster_gradients``: weights transposed for it, and its parts summed in their order.

    W^T [block, s, t, m, l] = W_{s,t}[l, m]
    dW = sum of the parts,   dC[c] = (sum of the parts) / n_c

n_c counts the members of the cluster in the whole unit, told from the lists of ``member_lists``.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.gradient_layout import GradientLayout, int64


@functools.cache
def transpose_weights(layout: GradientLayout) -> tirx.PrimFunc:
    """PrimFunc of w float32 [KH, KW, C, M] and the transposed weights, zero beyond L and M."""
    g, S, NB, Lp, blocks = layout.geometry, layout.segments, layout.channels, layout.Lp, layout.blocks
    C, KW = g.C, g.KW

    def entry(w, s, t, l, m):
        row = T.min(layout.weight_row(s, t, l), g.K - 1)
        value = w[row // (KW * C), row // C % KW, row % C, T.min(m, g.M - 1)]
        return T.if_then_else(T.And(l < layout.valid_length(s), m < g.M), value, T.float32(0))

    @T.prim_func(private=True)
    def kernel(a: T.handle, b: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        w = T.match_buffer(a, int64(g.KH, KW, C, g.M), "float32")
        W = T.match_buffer(b, int64(*layout.transposed_shape), "float32")
        for task in T.parallel(blocks * S):
            for t in range(layout.taps):
                for l in range(Lp):
                    for j in range(NB):
                        W[task // S, task % S, t * NB + j, l] = entry(w, task % S, t, l, task // S * NB + j)

    return kernel


@functools.cache
def sum_weight_gradient(layout: GradientLayout) -> tirx.PrimFunc:
    """PrimFunc of the parts of dW and dW float32 [KH, KW, C, M]."""
    g, S, NB, parts, lanes = layout.geometry, layout.segments, layout.channels, layout.parts, layout.isa.lanes
    C, KW, M, taps = g.C, g.KW, g.M, layout.taps

    def add_vector(sums, dw, s, t, l, m, row):
        total = sums[0, m // NB, s, t, l, across(m % NB, lanes)]
        for part in range(1, parts):
            total = total + sums[part, m // NB, s, t, l, across(m % NB, lanes)]
        T.buffer_store(dw, total, [row // (KW * C), row // C % KW, row % C, across(m, lanes)])

    def add_entry(sums, dw, s, t, l, m, row):
        total = sums[0, m // NB, s, t, l, m % NB]
        for part in range(1, parts):
            total = total + sums[part, m // NB, s, t, l, m % NB]
        T.buffer_store(dw, total, [row // (KW * C), row // C % KW, row % C, m])

    @T.prim_func(private=True)
    def kernel(a: T.handle, b: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        sums = T.match_buffer(a, int64(*layout.weight_sums_shape), "float32")
        dw = T.match_buffer(b, int64(g.KH, KW, C, M), "float32")
        for task in T.parallel(S * taps):
            s = T.meta_var(task // taps)
            t = T.meta_var(task % taps)
            for l in range(layout.valid_length(s)):
                row = T.meta_var(layout.weight_row(s, t, l))
                for v in range(M // lanes):
                    add_vector(sums, dw, s, t, l, v * lanes, row)
                for j in range(M % lanes):
                    add_entry(sums, dw, s, t, l, M // lanes * lanes + j, row)

    return kernel


@functools.cache
def centroid_gradient(layout: GradientLayout) -> tirx.PrimFunc:
    """PrimFunc of starts, the parts of dC and dC float32 [U, S, capacity + 1, Lp].

    Rows of no cluster are not written, but for the last: zeros.
    """
    U, S, cap, Lp, lanes = layout.units, layout.segments, layout.capacity, layout.Lp, layout.isa.lanes
    per_unit, phases = layout.unit_chunks, len(layout.phases)

    def divide(sums, dc, u, s, c, size):
        owners = [u] if U > 1 else list(range(layout.owners))
        parts = [(group, owner) for group in range(layout.groups) for owner in owners]
        count = T.bind(T.Broadcast(T.cast(size[0], "float32"), lanes))
        for l in range(0, Lp, lanes):
            at = across(l, lanes)
            total = sums[(*parts[0], s, c, at)]
            for part in parts[1:]:
                total = total + sums[(*part, s, c, at)]
            T.buffer_store(dc, total / count, [u, s, c, at])

    @T.prim_func(private=True)
    def kernel(st: T.handle, a: T.handle, b: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        starts = T.match_buffer(st, int64(*layout.starts_shape), "int32")
        sums = T.match_buffer(a, int64(*layout.centroid_sums_shape), "float32")
        dc = T.match_buffer(b, int64(*layout.centroids_shape), "float32")
        for task in T.parallel(U * S):
            u = T.meta_var(task // S)
            s = T.meta_var(task % S)
            size = T.alloc_buffer((1,), "int32", scope="local")
            for c in range(cap):
                size[0] = 0
                for k in range(per_unit):
                    for f in range(phases):
                        chunk = T.meta_var(u * per_unit + k)
                        size[0] = size[0] + (starts[chunk, s, f * cap + c + 1] - starts[chunk, s, f * cap + c])
                if size[0] > 0:
                    divide(sums, dc, u, s, c, size)
            for l in range(Lp):
                dc[u, s, cap, l] = T.float32(0)

    return kernel
