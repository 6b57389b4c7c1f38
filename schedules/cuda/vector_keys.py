"""Keys of ``pixel`` and ``segment`` neuron vectors (``docs/algorithm.md``, clauses 2 to 5 and 8), and clean counters.

A thread makes the dot products of one vector with all planes of its segment, a GEMM whose columns never leave the
registers; only their signs are written, one word a vector. A block's planes lie in shared memory, where all its threads
read the same entry. ``exact``: a hash of the vector's bits.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.schedules.cuda.key_table import EMPTY, MULTIPLIER, NO_KEY, NO_VECTOR, table_size
from adr_tvm.schedules.cuda.vector_reader import VectorReader
from adr_tvm.schedules.vector_key import INFINITY_BITS, padded_bits
from adr_tvm.settings import ReuseSetting

THREADS = 128
PLANE_ENTRIES = 64  # of each plane in shared memory at once


@T.inline
def _fill(buffer, size, value, thread, threads):
    for i in range((size + threads - 1) // threads):
        if i * threads + thread < size:
            buffer[i * threads + thread] = value


@functools.cache
def clear_vectors(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """What later kernels count in, and the hash table.

    Returns:
        PrimFunc of X float32 [B, H, W, C], not read, then the outputs table int32 [U S, slots], all ``EMPTY``, and,
        all 0, counts int32 [U, S, 2] and stats int32 [U, 2]; with signs also sums int64 [U S, capacity, Lp], members
        int32 [U S, capacity] and peaks int32 [U S].
    """
    source, exact = VectorReader(geometry, setting).source, setting.hash == "exact"
    H, W, C, S, Lp = geometry.H, geometry.W, geometry.C, source.segments, source.Lp
    size, per_image = source.map_size, source.per_image

    @T.inline
    def zero(table, counts, stats, cells, U, S, thread, threads):
        _fill(table, cells, EMPTY, thread, threads)
        _fill(counts, U * (S * 2), 0, thread, threads)
        _fill(stats, U * 2, 0, thread, threads)

    def slots_of(G):
        return table_size(setting, size if setting.scope == "image" else G * size)

    def blocks(cells):
        return tirx.min((cells + (4 * THREADS - 1)) // (4 * THREADS), tirx.IntImm("int64", 1 << 16))

    if exact:

        @T.prim_func(private=True)
        def plain(x: T.handle, ta: T.handle, co: T.handle, st: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            U = T.meta_var(units(setting, B)[0])
            slots = T.meta_var(slots_of(units(setting, B)[1]))
            _X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            table = T.match_buffer(ta, (U * S, slots), "int32")
            counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
            stats = T.match_buffer(st, (U, T.int64(2)), "int32")
            flat_table = T.decl_buffer((U * S * slots,), "int32", data=table.data)
            flat_counts = T.decl_buffer((U * (S * 2),), "int32", data=counts.data)
            flat_stats = T.decl_buffer((U * 2,), "int32", data=stats.data)
            for block in T.thread_binding(blocks(U * S * slots), "blockIdx.x"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    thread = T.meta_var(T.cast(block, "int64") * THREADS + t)
                    threads = T.meta_var(blocks(U * S * slots) * THREADS)
                    zero(flat_table, flat_counts, flat_stats, U * S * slots, U, S, thread, threads)

        return plain

    @T.prim_func(private=True)
    def summed(x: T.handle, ta: T.handle, co: T.handle, st: T.handle, su: T.handle, me: T.handle, pe: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        slots = T.meta_var(slots_of(units(setting, B)[1]))
        cap = T.meta_var(capacity(setting, units(setting, B)[1] * T.int64(per_image)))
        _X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        table = T.match_buffer(ta, (U * S, slots), "int32")
        counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        sums = T.match_buffer(su, (U * S, cap, T.int64(Lp)), "int64")
        members = T.match_buffer(me, (U * S, cap), "int32")
        peaks = T.match_buffer(pe, (U * S,), "int32")
        flat_table = T.decl_buffer((U * S * slots,), "int32", data=table.data)
        flat_counts = T.decl_buffer((U * (S * 2),), "int32", data=counts.data)
        flat_stats = T.decl_buffer((U * 2,), "int32", data=stats.data)
        flat_sums = T.decl_buffer((U * S * cap * Lp,), "int64", data=sums.data)
        flat_members = T.decl_buffer((U * S * cap,), "int32", data=members.data)
        for block in T.thread_binding(blocks(U * S * cap * Lp), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                thread = T.meta_var(T.cast(block, "int64") * THREADS + t)
                threads = T.meta_var(blocks(U * S * cap * Lp) * THREADS)
                zero(flat_table, flat_counts, flat_stats, U * S * slots, U, S, thread, threads)
                _fill(flat_sums, U * S * cap * Lp, T.int64(0), thread, threads)
                _fill(flat_members, U * S * cap, 0, thread, threads)
                _fill(peaks, U * S, 0, thread, threads)

    return summed


def _signs(S: int, L: int, V: int, H: int):
    """The parts of a key of signs: begin, take V entries that lie at place l of the planes, end."""
    Hp = padded_bits(H)

    @T.inline
    def begin(dot, hashed):
        for h in T.unroll(Hp):
            dot[h] = T.float32(0)

    @T.inline
    def fetch(planes, P, s, chunk, t):
        for i in range(-(-PLANE_ENTRIES * Hp // THREADS)):
            u = T.meta_var(i * THREADS + t)
            if T.And(u < PLANE_ENTRIES * Hp, (s * L + chunk * PLANE_ENTRIES) * Hp + u < S * L * Hp):
                P[u] = planes[(s * L + chunk * PLANE_ENTRIES) * Hp + u]

    @T.inline
    def take(P, dot, hashed, values, place):
        for v in T.unroll(V):
            for h in T.unroll(Hp):
                dot[h] = dot[h] + values[v] * P[(place + v) * Hp + h]

    @T.inline
    def end(thresholds, dot, hashed, largest, word, s):
        word[0] = T.int64(0)
        for h in T.unroll(H):
            if dot[h] > thresholds[s, h]:
                word[0] = word[0] + T.int64(1 << h)
        if largest[0] == 0:
            word[0] = T.int64(1 << H)

    return begin, fetch, take, end


def _bits(V: int):
    """The same for ``exact``: a hash of 64 bits over the vector's bits."""

    @T.inline
    def begin(dot, hashed):
        hashed[0] = T.uint64(0)

    @T.inline
    def fetch(planes, P, s, chunk, t):
        pass

    @T.inline
    def take(P, dot, hashed, values, place):
        for v in T.unroll(V):
            hashed[0] = (hashed[0] ^ T.cast(T.reinterpret("uint32", values[v]), "uint64")) * T.uint64(MULTIPLIER)
            hashed[0] = hashed[0] ^ T.shift_right(hashed[0], T.uint64(32))

    @T.inline
    def end(thresholds, dot, hashed, largest, word, s):
        word[0] = T.cast(T.shift_right(hashed[0], T.uint64(1)), "int64")

    return begin, fetch, take, end


@functools.cache
def vector_keys(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Keys of all vectors.

    Returns:
        PrimFunc of X float32 [B, H, W, C], planes float32 [S, L, Hp], thresholds float32 [S, Hp], peaks int32 [U S],
        which become the bits of the largest finite |x| of each segment, and the output words int64 [U S, N], N = G
        map_size. ``exact`` takes planes [1, 1, 8] and thresholds [1, 8], not read, and no peaks.
    """
    reader, exact = VectorReader(geometry, setting), setting.hash == "exact"
    source, V = reader.source, reader.V
    H, W, C, S, L, size = geometry.H, geometry.W, geometry.C, source.segments, source.L, source.map_size
    SP, LP, Hp = (1, 1, 8) if exact else (S, L, padded_bits(setting.H))
    chunks = -(-L // PLANE_ENTRIES)
    find, load = reader.find(), reader.load()
    begin, fetch, take, end = _bits(V) if exact else _signs(S, L, V, setting.H)

    @T.inline
    def body(X, planes, flat_planes, thresholds, peaks, words, U, G, block, t):
        P = T.alloc_buffer((1 if exact else PLANE_ENTRIES * Hp,), "float32", scope="shared")
        peak = T.alloc_buffer((1,), "int32", scope="shared")
        base = T.alloc_buffer((1,), "int64", scope="local")
        corner = T.alloc_buffer((2,), "int32", scope="local")
        seen = T.alloc_buffer((1,), "int32", scope="local")
        values = T.alloc_buffer((V,), "float32", scope="local")
        dot = T.alloc_buffer((1 if exact else Hp,), "float32", scope="local")
        hashed = T.alloc_buffer((1,), "uint64", scope="local")
        largest = T.alloc_buffer((1,), "int32", scope="local")
        word = T.alloc_buffer((1,), "int64", scope="local")
        blocks = T.meta_var((G * size + (THREADS - 1)) // THREADS)
        q = T.meta_var(T.cast(block // blocks, "int32"))
        s = T.meta_var(q % S)
        n = T.meta_var(T.cast(block % blocks, "int32") * THREADS + t)
        if t == 0:
            peak[0] = 0
        find(base, corner, seen, T.cast(q // S, "int64") * G + n // size, n % size, s)
        if T.cast(n, "int64") >= G * size:
            seen[0] = 0
            corner[0] = -(1 << 20)
        begin(dot, hashed)
        largest[0] = 0
        for chunk in range(chunks):
            T.tvm_storage_sync("shared")
            fetch(flat_planes, P, s, chunk, t)
            T.tvm_storage_sync("shared")
            for i in range(T.min(PLANE_ENTRIES, L - chunk * PLANE_ENTRIES) // V):
                l = T.meta_var(chunk * PLANE_ENTRIES + i * V)
                load(X, base, corner, seen, values, s, l // V)
                for v in T.unroll(V):
                    largest[0] = T.max(largest[0], T.reinterpret("int32", values[v]) & 0x7FFFFFFF)
                take(P, dot, hashed, values, i * V)
        end(thresholds, dot, hashed, largest, word, s)
        if largest[0] >= INFINITY_BITS:
            word[0] = T.int64(NO_KEY)
        if seen[0] == 0:
            word[0] = T.int64(NO_VECTOR)
        if T.cast(n, "int64") < G * size:
            words[q, n] = word[0]
        if not exact:
            if word[0] >= T.int64(0):
                T.evaluate(T.call_extern("int32", "atomicMax", T.address_of(peak[0]), largest[0]))
            T.tvm_storage_sync("shared")
            if t == 0:
                T.evaluate(T.call_extern("int32", "atomicMax", T.address_of(peaks[q]), peak[0]))

    if exact:

        @T.prim_func(private=True)
        def of_bits(x: T.handle, pl: T.handle, th: T.handle, wo: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            U = T.meta_var(units(setting, B)[0])
            G = T.meta_var(units(setting, B)[1])
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            planes = T.match_buffer(pl, (T.int64(SP), T.int64(LP), T.int64(Hp)), "float32")
            thresholds = T.match_buffer(th, (T.int64(SP), T.int64(Hp)), "float32")
            words = T.match_buffer(wo, (U * S, G * size), "int64")
            flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
            for block in T.thread_binding(U * S * ((G * size + (THREADS - 1)) // THREADS), "blockIdx.x"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    body(flat_x, planes, thresholds, thresholds, words, words, U, G, T.cast(block, "int64"), t)

        return of_bits

    @T.prim_func(private=True)
    def of_signs(x: T.handle, pl: T.handle, th: T.handle, pe: T.handle, wo: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        planes = T.match_buffer(pl, (T.int64(SP), T.int64(LP), T.int64(Hp)), "float32")
        thresholds = T.match_buffer(th, (T.int64(SP), T.int64(Hp)), "float32")
        peaks = T.match_buffer(pe, (U * S,), "int32")
        words = T.match_buffer(wo, (U * S, G * size), "int64")
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        flat_planes = T.decl_buffer((SP * LP * Hp,), "float32", data=planes.data)
        for block in T.thread_binding(U * S * ((G * size + (THREADS - 1)) // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                body(flat_x, planes, flat_planes, thresholds, peaks, words, U, G, T.cast(block, "int64"), t)

    return of_signs
