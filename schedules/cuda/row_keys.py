"""Keys of im2col rows (``docs/algorithm.md``, clauses 2, 4, 5 and 8), and clean tables for what follows.

A key is one word: of ``exact`` rows a hash of their bits, else the signs of their dot products with the planes, one bit
each, or 2^H where all entries are zero; ``NO_KEY`` where one is not finite. The dot products are a GEMM with as many
columns as there are planes: a thread makes those of one row with eight planes, which never leave its registers, and
only their signs are written.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import units
from adr_tvm.schedules.cuda.key_table import EMPTY, MULTIPLIER, NO_KEY, table_size
from adr_tvm.schedules.cuda.row_gather import OUTSIDE, RowGather
from adr_tvm.schedules.vector_key import INFINITY_BITS
from adr_tvm.settings import ReuseSetting

MANY_ROWS = 1 << 14  # of a call, from which on blocks of many rows leave no multiprocessor idle
BK = 32


def padded_planes(H: int) -> int:
    """Planes that a kernel multiplies: 8, 16 or 32."""
    return next(n for n in (8, 16, 32) if n >= H)


def padded_entries(K: int) -> int:
    """Entries of a plane in the kernel's layout, zero from K on."""
    return -(-K // BK) * BK


def _signs(geometry: ConvGeometry, setting: ReuseSetting, R: int, groups: int):
    """Inline ``(A, planes, thresholds, word, ...)`` parts of ``row_keys`` for sign hashes."""
    H, Hp = setting.H, padded_planes(setting.H)
    threads, planes_left = R * groups, BK * Hp // 4

    @T.inline
    def begin(dot, hashed):
        for h in T.unroll(8):
            dot[h] = T.float32(0)

    @T.inline
    def fetch(planes, P, step, t):
        for i in T.unroll(-(-planes_left // threads)):
            u = T.meta_var(i * threads + t)
            if u < planes_left:
                for v in T.vectorized(4):
                    P[u * 4 + v] = planes[step * (BK * Hp) + u * 4 + v]

    @T.inline
    def take(P, dot, hashed, value, k, t):
        for h in T.unroll(8):
            dot[h] = dot[h] + value[0] * P[k * Hp + t // R * 8 + h]

    @T.inline
    def end(thresholds, bits, dot, hashed, largest, word, t):
        partial = T.alloc_buffer((1,), "int32", scope="local")
        partial[0] = 0
        for h in T.unroll(8):
            if dot[h] > thresholds[t // R * 8 + h]:
                partial[0] = partial[0] + T.shift_left(1, t // R * 8 + h)
        bits[t] = partial[0]
        T.tvm_storage_sync("shared")
        word[0] = T.int64(0)
        for g in T.unroll(groups):
            word[0] = word[0] + T.cast(bits[t % R + g * R], "int64")
        if largest[0] == 0:
            word[0] = T.int64(2**H)

    return begin, fetch, take, end


def _bits():
    """The same for ``exact``: a hash of 64 bits over the row's bits, one multiplication for each entry."""

    @T.inline
    def begin(dot, hashed):
        hashed[0] = T.uint64(0)

    @T.inline
    def fetch(planes, P, step, t):
        pass

    @T.inline
    def take(P, dot, hashed, value, k, t):
        hashed[0] = (hashed[0] ^ T.cast(T.reinterpret("uint32", value[0]), "uint64")) * T.uint64(MULTIPLIER)
        hashed[0] = hashed[0] ^ T.shift_right(hashed[0], T.uint64(32))

    @T.inline
    def end(thresholds, bits, dot, hashed, largest, word, t):
        word[0] = T.cast(T.shift_right(hashed[0], T.uint64(1)), "int64")

    return begin, fetch, take, end


@functools.cache
def row_keys(geometry: ConvGeometry, setting: ReuseSetting, many: bool, dtype: str = "float32") -> tirx.PrimFunc:
    """Keys of all rows.

    Args:
        geometry: shapes of one image.
        setting: how rows are hashed.
        many: whether there are so many rows that blocks may be large.
        dtype: of X, whose entries are hashed as fp32.

    Returns:
        PrimFunc of X [B, H, W, C], planes float32 [K padded to BK, Hp] in the order (KH, KW, C), thresholds
        float32 [Hp] (``exact``: [1, 1] and [1], not read), then the outputs words int64 [U, N], table int32 [U, slots],
        all ``EMPTY``, last int32 [U, N], all -1, and stats int32 [U, 2], all 0.
    """
    g = geometry
    H, W, C, K, rows, exact = g.H, g.W, g.C, g.K, g.rows, setting.hash == "exact"
    Hp = 1 if exact else padded_planes(setting.H)
    R, groups = 128 if many else 32, 1 if exact else Hp // 8
    threads, steps = R * groups, padded_entries(K) // BK
    Kp = 1 if exact else padded_entries(K)
    gather = RowGather(g, R, BK, threads, dtype)
    find, load, put, row, entry = gather.find(), gather.load(), gather.put(), gather.row, gather.entry
    count, V, pitch = gather.count, gather.V, gather.pitch
    begin, fetch, take, end = _bits() if exact else _signs(g, setting, R, groups)

    @T.inline
    def clear(buffer, size, value, block, blocks, t):
        for i in range((size + blocks * threads - 1) // (blocks * threads)):
            place = T.meta_var((T.cast(i, "int64") * blocks + block) * threads + t)
            if place < size:
                buffer[place] = value

    @T.prim_func(private=True)
    def kernel(x: T.handle, pl: T.handle, th: T.handle, wo: T.handle, ta: T.handle, la: T.handle, st: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        slots = T.meta_var(table_size(setting, rows if setting.scope == "image" else N))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        planes = T.match_buffer(pl, (T.int64(Kp), T.int64(Hp)), "float32")
        thresholds = T.match_buffer(th, (T.int64(Hp),), "float32")
        words = T.match_buffer(wo, (U, N), "int64")
        table = T.match_buffer(ta, (U, slots), "int32")
        last = T.match_buffer(la, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        flat_x = T.decl_buffer((B * (H * W * C),), dtype, data=X.data)
        flat_planes = T.decl_buffer((Kp * Hp,), "float32", data=planes.data)
        flat_words = T.decl_buffer((B * rows,), "int64", data=words.data)
        flat_table = T.decl_buffer((U * slots,), "int32", data=table.data)
        flat_last = T.decl_buffer((B * rows,), "int32", data=last.data)
        flat_stats = T.decl_buffer((U * 2,), "int32", data=stats.data)
        for block in T.thread_binding((B * rows + (R - 1)) // R, "blockIdx.x"):
            for t in T.thread_binding(threads, "threadIdx.x"):
                A = T.alloc_buffer((gather.size,), "float32", scope="shared")
                P = T.alloc_buffer((BK * Hp,), "float32", scope="shared")
                bits = T.alloc_buffer((threads,), "int32", scope="shared")
                values = T.alloc_buffer((count * V,), "float32", scope="local")
                pixel = T.alloc_buffer((count,), "int32", scope="local")
                down = T.alloc_buffer((count,), "int32", scope="local")
                right = T.alloc_buffer((count,), "int32", scope="local")
                dot = T.alloc_buffer((8,), "float32", scope="local")
                hashed = T.alloc_buffer((1,), "uint64", scope="local")
                value = T.alloc_buffer((1,), "float32", scope="local")
                largest = T.alloc_buffer((1,), "int32", scope="local")
                word = T.alloc_buffer((1,), "int64", scope="local")
                first = T.meta_var(T.cast(block, "int32") * R)
                blocks = T.meta_var((B * rows + (R - 1)) // R)
                clear(flat_table, U * slots, EMPTY, T.cast(block, "int64"), blocks, t)
                clear(flat_last, B * rows, -1, T.cast(block, "int64"), blocks, t)
                clear(flat_stats, U * 2, 0, T.cast(block, "int64"), blocks, t)
                for i in T.unroll(count):
                    pixel[i] = 0
                    down[i] = OUTSIDE
                    right[i] = 0
                    if first + row(t, i) < T.cast(B * rows, "int32"):
                        find(pixel, down, right, i, first + row(t, i))
                begin(dot, hashed)
                largest[0] = 0
                for step in range(steps):
                    for i in T.unroll(count):
                        load(flat_x, pixel, down, right, values, i, step * BK + entry(t))
                    put(A, values, 0, t)
                    fetch(flat_planes, P, step, t)
                    T.tvm_storage_sync("shared")
                    for k in range(T.min(BK, K - step * BK)):
                        value[0] = A[k * pitch + t % R]
                        largest[0] = T.max(largest[0], T.reinterpret("int32", value[0]) & 0x7FFFFFFF)
                        take(P, dot, hashed, value, k, t)
                    T.tvm_storage_sync("shared")
                end(thresholds, bits, dot, hashed, largest, word, t)
                if T.And(t < R, first + t < T.cast(B * rows, "int32")):
                    flat_words[first + t] = T.if_then_else(largest[0] >= INFINITY_BITS, T.int64(NO_KEY), word[0])

    return kernel
