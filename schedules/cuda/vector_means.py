"""Ids, centroids and gains of ``pixel`` and ``segment`` vectors (``docs/algorithm.md``, clauses 6, 7 and 9).

Members are added up as whole numbers: x - x_first in steps of a power of two that follows from the largest |x| of the
segment, in 64 bits. Such sums are exact, so no order of threads changes a byte, and atomic additions do. A step is at
most 2^-29 of the largest |x|, finer than an fp32 sum of numbers of that size.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.cuda.key_table import NO_KEY
from adr_tvm.schedules.cuda.vector_reader import VectorReader
from adr_tvm.schedules.vector_key import NO_VECTOR, NON_FINITE
from adr_tvm.settings import ReuseSetting

THREADS = 128
SUM_BITS = 62


def _steps_exponent(setting: ReuseSetting, vectors: int, peak):
    """k, such that whole numbers of 2^-k add up |x - x_first| <= 2 |x|max of all vectors of a unit in 63 bits.

    ``peak``: the bits of |x|max. In a batch there may be as many vectors as an int32 counts.
    """
    bits = 31 if setting.scope == "batch" else vectors.bit_length()
    return SUM_BITS - bits - 2 - (T.shift_right(peak, 23) - 127)


def _power_of_two(k):
    return T.reinterpret("float64", T.shift_left(T.cast(k + 1023, "int64"), T.int64(52)))


def _add_to(sums, place, value):
    """An atomic addition to an unsigned number of 64 bits; CUDA's own name for that type differs from C++'s."""
    address = T.call_extern("uint64", "(unsigned long long*)", T.address_of(sums[place]))
    return T.call_extern("uint64", "atomicAdd", address, T.call_extern("uint64", "(unsigned long long)", value))


@functools.cache
def vector_ids(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Ids; with signs also the sums of the members of each cluster.

    Returns:
        PrimFunc of X float32 [B, H, W, C], lead, slot, ranks int32 [U S, N], with signs peaks int32 [U S], sums int64
        [U S, capacity, Lp] and members int32 [U S, capacity], to the last two of which it adds, and the output ids
        int32 [U, S, N].
    """
    reader, exact = VectorReader(geometry, setting), setting.hash == "exact"
    source, V = reader.source, reader.V
    H, W, C, S, L, Lp = geometry.H, geometry.W, geometry.C, source.segments, source.L, source.Lp
    size, per_image = source.map_size, source.per_image
    find, load = reader.find(), reader.load()

    @T.inline
    def identify(lead, slot, ranks, flat_ids, id, q, n, N):
        id[0] = NO_VECTOR
        if lead[q, n] >= 0:
            id[0] = NON_FINITE
            if slot[q, n] != NO_KEY:
                id[0] = ranks[q, lead[q, n]]
        flat_ids[q * N + n] = id[0]

    if exact:

        @T.prim_func(private=True)
        def plain(x: T.handle, le: T.handle, sl: T.handle, ra: T.handle, i: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            U = T.meta_var(units(setting, B)[0])
            N = T.meta_var(units(setting, B)[1] * T.int64(size))
            _X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            lead = T.match_buffer(le, (U * S, N), "int32")
            slot = T.match_buffer(sl, (U * S, N), "int32")
            ranks = T.match_buffer(ra, (U * S, N), "int32")
            ids = T.match_buffer(i, (U, T.int64(S), N), "int32")
            flat_ids = T.decl_buffer((U * S * N,), "int32", data=ids.data)
            for block in T.thread_binding(U * S * ((N + (THREADS - 1)) // THREADS), "blockIdx.x"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    id = T.alloc_buffer((1,), "int32", scope="local")
                    blocks = T.meta_var((N + (THREADS - 1)) // THREADS)
                    q = T.meta_var(T.cast(block, "int64") // blocks)
                    n = T.meta_var(T.cast(block, "int64") % blocks * THREADS + t)
                    if n < N:
                        identify(lead, slot, ranks, flat_ids, id, q, n, N)

        return plain

    @T.prim_func(private=True)
    def summing(
        x: T.handle,
        le: T.handle,
        sl: T.handle,
        ra: T.handle,
        pe: T.handle,
        su: T.handle,
        me: T.handle,
        i: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(size))
        cap = T.meta_var(capacity(setting, G * T.int64(per_image)))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        lead = T.match_buffer(le, (U * S, N), "int32")
        slot = T.match_buffer(sl, (U * S, N), "int32")
        ranks = T.match_buffer(ra, (U * S, N), "int32")
        peaks = T.match_buffer(pe, (U * S,), "int32")
        sums = T.match_buffer(su, (U * S, cap, T.int64(Lp)), "int64")
        members = T.match_buffer(me, (U * S, cap), "int32")
        ids = T.match_buffer(i, (U, T.int64(S), N), "int32")
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        flat_sums = T.decl_buffer((U * S * cap * Lp,), "int64", data=sums.data)
        flat_ids = T.decl_buffer((U * S * N,), "int32", data=ids.data)
        for block in T.thread_binding(U * S * ((N + (THREADS - 1)) // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                id = T.alloc_buffer((1,), "int32", scope="local")
                base = T.alloc_buffer((1,), "int64", scope="local")
                corner = T.alloc_buffer((2,), "int32", scope="local")
                seen = T.alloc_buffer((1,), "int32", scope="local")
                values = T.alloc_buffer((V,), "float32", scope="local")
                first_base = T.alloc_buffer((1,), "int64", scope="local")
                first_corner = T.alloc_buffer((2,), "int32", scope="local")
                firsts = T.alloc_buffer((V,), "float32", scope="local")
                scale = T.alloc_buffer((1,), "float64", scope="local")
                whole = T.alloc_buffer((1,), "int64", scope="local")
                blocks = T.meta_var((N + (THREADS - 1)) // THREADS)
                q = T.meta_var(T.cast(block, "int64") // blocks)
                s = T.meta_var(T.cast(q % S, "int32"))
                n = T.meta_var(T.cast(T.cast(block, "int64") % blocks, "int32") * THREADS + t)
                image = T.meta_var(q // S * G)
                if n < T.cast(N, "int32"):
                    identify(lead, slot, ranks, flat_ids, id, q, n, N)
                    if id[0] >= 0:
                        T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(members[q, id[0]]), 1))
                        if lead[q, n] != n:
                            scale[0] = _power_of_two(_steps_exponent(setting, size, peaks[q]))
                            find(base, corner, seen, image + n // size, n % size, s)
                            find(first_base, first_corner, seen, image + lead[q, n] // size, lead[q, n] % size, s)
                            for i in range(L // V):
                                load(flat_x, base, corner, seen, values, s, i)
                                load(flat_x, first_base, first_corner, seen, firsts, s, i)
                                for v in T.unroll(V):
                                    whole[0] = T.cast(
                                        (T.cast(values[v], "float64") - T.cast(firsts[v], "float64")) * scale[0],
                                        "int64",
                                    )
                                    if whole[0] != T.int64(0):
                                        T.evaluate(_add_to(flat_sums, (q * cap + id[0]) * Lp + i * V + v, whole[0]))

    return summing


@functools.cache
def vector_means(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Centroids; ``exact``: first members.

    Returns:
        PrimFunc of X float32 [B, H, W, C], firsts int32 [U S, capacity], counts int32 [U, S, 2], with signs sums int64
        [U S, capacity, Lp], members int32 [U S, capacity] and peaks int32 [U S], and the output centroids float32 [U,
        S, capacity + SPARE_CENTROIDS, Lp], zeros behind L.
    """
    reader, exact = VectorReader(geometry, setting), setting.hash == "exact"
    source, V = reader.source, reader.V
    H, W, C, S, L, Lp = geometry.H, geometry.W, geometry.C, source.segments, source.L, source.Lp
    size, per_image, parts = source.map_size, source.per_image, source.Lp // reader.V
    find, load = reader.find(), reader.load()

    @T.inline
    def body(X, firsts, counts, sums, members, peaks, centroids, G, cap, cells, block, t):
        base = T.alloc_buffer((1,), "int64", scope="local")
        corner = T.alloc_buffer((2,), "int32", scope="local")
        seen = T.alloc_buffer((1,), "int32", scope="local")
        values = T.alloc_buffer((V,), "float32", scope="local")
        step = T.alloc_buffer((1,), "float64", scope="local")
        i = T.meta_var(block * THREADS + t)
        q = T.meta_var(i // (cap * parts))
        id = T.meta_var(i // parts % cap)
        l = T.meta_var(T.cast(i % parts, "int32") * V)
        s = T.meta_var(T.cast(q % S, "int32"))
        if i < cells:
            if id < T.cast(counts[q // S, s, 0], "int64"):
                for v in T.unroll(V):
                    values[v] = T.float32(0)
                if l < L:
                    find(base, corner, seen, q // S * G + firsts[q, id] // size, firsts[q, id] % size, s)
                    load(X, base, corner, seen, values, s, l // V)
                    if not exact:
                        step[0] = _power_of_two(-_steps_exponent(setting, size, peaks[q])) / T.cast(
                            members[q, id], "float64"
                        )
                        for v in T.unroll(V):
                            values[v] = values[v] + T.cast(
                                T.cast(sums[(q * cap + id) * Lp + l + v], "float64") * step[0],
                                "float32",
                            )
                for v in T.unroll(V):
                    centroids[(q * (cap + SPARE_CENTROIDS) + id) * Lp + l + v] = values[v]

    if exact:

        @T.prim_func(private=True)
        def copied(x: T.handle, fi: T.handle, co: T.handle, ce: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            U = T.meta_var(units(setting, B)[0])
            G = T.meta_var(units(setting, B)[1])
            cap = T.meta_var(capacity(setting, G * T.int64(per_image)))
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            firsts = T.match_buffer(fi, (U * S, cap), "int32")
            counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
            centroids = T.match_buffer(ce, (U, T.int64(S), cap + SPARE_CENTROIDS, T.int64(Lp)), "float32")
            flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
            flat_c = T.decl_buffer((U * S * (cap + SPARE_CENTROIDS) * Lp,), "float32", data=centroids.data)
            cells = T.meta_var(U * S * cap * parts)
            for block in T.thread_binding((cells + (THREADS - 1)) // THREADS, "blockIdx.x"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    b = T.meta_var(T.cast(block, "int64"))
                    body(flat_x, firsts, counts, firsts, firsts, firsts, flat_c, G, cap, cells, b, t)

        return copied

    @T.prim_func(private=True)
    def averaged(x: T.handle, fi: T.handle, co: T.handle, su: T.handle, me: T.handle, pe: T.handle, ce: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        cap = T.meta_var(capacity(setting, G * T.int64(per_image)))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        firsts = T.match_buffer(fi, (U * S, cap), "int32")
        counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
        sums = T.match_buffer(su, (U * S, cap, T.int64(Lp)), "int64")
        members = T.match_buffer(me, (U * S, cap), "int32")
        peaks = T.match_buffer(pe, (U * S,), "int32")
        centroids = T.match_buffer(ce, (U, T.int64(S), cap + SPARE_CENTROIDS, T.int64(Lp)), "float32")
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        flat_sums = T.decl_buffer((U * S * cap * Lp,), "int64", data=sums.data)
        flat_c = T.decl_buffer((U * S * (cap + SPARE_CENTROIDS) * Lp,), "float32", data=centroids.data)
        cells = T.meta_var(U * S * cap * parts)
        for block in T.thread_binding((cells + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                b = T.meta_var(T.cast(block, "int64"))
                body(flat_x, firsts, counts, flat_sums, members, peaks, flat_c, G, cap, cells, b, t)

    return averaged


@functools.cache
def vector_gains(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Factors <x, c> / <c, c> of clause 9, 1 where <c, c> is 0 or infinite and where there is no centroid.

    Returns:
        PrimFunc of X float32 [B, H, W, C], ids int32 [U, S, N], centroids float32 [U, S, capacity + SPARE_CENTROIDS,
        Lp] and the output gains float32 [U, S, N].
    """
    reader = VectorReader(geometry, setting)
    source, V = reader.source, reader.V
    H, W, C, S, L, Lp = geometry.H, geometry.W, geometry.C, source.segments, source.L, source.Lp
    size, per_image = source.map_size, source.per_image
    find, load = reader.find(), reader.load()

    @T.prim_func(private=True)
    def kernel(x: T.handle, i: T.handle, ce: T.handle, ga: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(size))
        rows = T.meta_var(capacity(setting, G * T.int64(per_image)) + SPARE_CENTROIDS)
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        ids = T.match_buffer(i, (U, T.int64(S), N), "int32")
        centroids = T.match_buffer(ce, (U, T.int64(S), rows, T.int64(Lp)), "float32")
        gains = T.match_buffer(ga, (U, T.int64(S), N), "float32")
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        for block in T.thread_binding(U * S * ((N + (THREADS - 1)) // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                base = T.alloc_buffer((1,), "int64", scope="local")
                corner = T.alloc_buffer((2,), "int32", scope="local")
                seen = T.alloc_buffer((1,), "int32", scope="local")
                values = T.alloc_buffer((V,), "float32", scope="local")
                dots = T.alloc_buffer((2,), "float32", scope="local")
                blocks = T.meta_var((N + (THREADS - 1)) // THREADS)
                u = T.meta_var(T.cast(block, "int64") // blocks // S)
                s = T.meta_var(T.cast(T.cast(block, "int64") // blocks % S, "int32"))
                n = T.meta_var(T.cast(T.cast(block, "int64") % blocks, "int32") * THREADS + t)
                if n < T.cast(N, "int32"):
                    gains[u, s, n] = T.float32(1)
                    if ids[u, s, n] >= 0:
                        find(base, corner, seen, u * G + n // size, n % size, s)
                        dots[0] = T.float32(0)
                        dots[1] = T.float32(0)
                        for i in range(L // V):
                            load(flat_x, base, corner, seen, values, s, i)
                            for v in T.unroll(V):
                                entry = T.meta_var(centroids[u, s, ids[u, s, n], i * V + v])
                                dots[0] = dots[0] + values[v] * entry
                                dots[1] = dots[1] + entry * entry
                        if T.And(dots[1] > T.float32(0), dots[1] <= T.float32(3.4028234e38)):
                            gains[u, s, n] = dots[0] / dots[1]

    return kernel
