"""Keys of neuron vectors: sign hashes for the plane families, bit-pattern hashes for ``exact``.

Codes below zero mark what has no key (``docs/algorithm.md``, clauses 3 to 5).
"""

from __future__ import annotations

import numpy as np
from tvm import te, tirx
from tvm.script import tirx as T

from adr_tvm.schedules.neuron_vectors import LANES

NO_VECTOR, NON_FINITE, ZERO = -1, -2, -3
INFINITY_BITS = 0x7F800000


def padded_bits(H: int) -> int:
    """Bits rounded up to whole 8-lane vectors; the planes of the extra bits are 0 with threshold +inf."""
    return -(-H // 8) * 8


def pad_planes(v: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Planes [S, L, H] (or, with ``fill`` +inf, thresholds [S, H]) with H rounded up for the kernels, float32."""
    extra = padded_bits(v.shape[-1]) - v.shape[-1]
    return np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, extra)], constant_values=fill).astype(np.float32)


def te_pad_planes(planes: te.Tensor, by_tap: tuple[int, int, int] | None) -> te.Tensor:
    """`pad_planes` of planes that are an argument; ``by_tap`` = (C, KH, KW) also reorders L to (KH, KW, C)."""
    S, L, H = (int(d) for d in planes.shape)

    def entry(l):
        if by_tap is None:
            return l
        C, KH, KW = by_tap
        return l % C * (KH * KW) + l // C

    return te.compute(
        _int64(S, L, padded_bits(H)),
        lambda s, l, h: tirx.if_then_else(h < H, planes[s, entry(l), tirx.min(h, H - 1)], tirx.const(0.0, "float32")),
        name="pad_planes",
    )


def te_pad_thresholds(thresholds: te.Tensor) -> te.Tensor:
    """`pad_planes` of thresholds that are an argument."""
    S, H = (int(d) for d in thresholds.shape)
    return te.compute(
        _int64(S, padded_bits(H)),
        lambda s, h: tirx.if_then_else(h < H, thresholds[s, tirx.min(h, H - 1)], tirx.const(np.inf, "float32")),
        name="pad_thresholds",
    )


def _int64(*dims: int) -> tuple[tirx.PrimExpr, ...]:
    return tuple(tirx.const(d, "int64") for d in dims)


def magnitude_bits(Lp: int):
    """Inline ``(v, m)``: m[0] = the largest |v_l| as its bit pattern: 0 for all zeros, >= infinity's if not finite."""

    @T.inline
    def inline(v, m):
        for j in T.vectorized(LANES):
            m[j] = T.reinterpret("int32", v[j]) & T.int32(0x7FFFFFFF)
        for c in range(1, Lp // LANES):
            for j in T.vectorized(LANES):
                m[j] = T.max(m[j], T.reinterpret("int32", v[c * LANES + j]) & T.int32(0x7FFFFFFF))
        for j in T.unroll(LANES - 1):
            m[0] = T.max(m[0], m[j + 1])

    return inline


def sign_key(L: int, Lp: int, H: int):
    """Inline ``(v, planes, thresholds, s, dot, bits, m, seen, key)``: key[0] = key or code of the vector in v.

    dot is a float32 [Hp], bits an int32 [Hp], m an int32 [16] local buffer.
    """
    Hp = padded_bits(H)
    magnitude = magnitude_bits(Lp)

    @T.inline
    def inline(v, planes, thresholds, s, dot, bits, m, seen, key):
        magnitude(v, m)
        if seen[0] == 0:
            key[0] = NO_VECTOR
        elif m[0] >= INFINITY_BITS:
            key[0] = NON_FINITE
        elif m[0] == 0:
            key[0] = ZERO
        else:
            for h in T.vectorized(Hp):
                dot[h] = T.float32(0)
            for l in range(L):
                for h in T.vectorized(Hp):
                    dot[h] = dot[h] + v[l] * planes[s, l, h]
            for h in T.vectorized(Hp):
                bits[h] = T.Select(dot[h] > thresholds[s, h], T.int32(1) << h, T.int32(0))
            key[0] = 0
            for h in T.unroll(H):
                key[0] = key[0] | bits[h]

    return inline


def _odd(index):
    """An odd 64-bit multiplier for entry or tap ``index``."""
    return (T.cast(index, "int64") * T.int64(0x3C6EF372FE94F82A)) + T.int64(0x1E3779B97F4A7C15)


def mix(word, index):
    """A 64-bit word, multiplied by an odd constant of its position and folded; 0 stays 0.

    Sums of such terms hash a vector: without the fold a sum would be linear, and permuted vectors would collide.
    """
    product = word * _odd(index)
    return (product ^ T.shift_right(product, T.int64(31))) * T.int64(0x7FB5D329728EA185)


def exact_key(L: int, Lp: int):
    """Inline ``(v, m, seen, key, key64)``: key[0] = 0 or a code, key64[0] = hash of the bit patterns of v."""
    magnitude = magnitude_bits(Lp)

    @T.inline
    def inline(v, m, seen, key, key64):
        magnitude(v, m)
        key[0] = 0
        key64[0] = T.int64(0)
        if seen[0] == 0:
            key[0] = NO_VECTOR
        elif m[0] >= INFINITY_BITS:
            key[0] = NON_FINITE
        else:
            for l in range(L):
                key64[0] = key64[0] + mix(T.cast(T.reinterpret("int32", v[l]), "int64"), l)

    return inline
