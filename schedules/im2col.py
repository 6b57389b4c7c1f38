"""im2col rows on the fly: copying one row of X (N x K), or one neuron vector of it, into a local buffer.

Everything here is a TIR inline function, expanded in the kernels that use it; no im2col matrix is ever stored.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import KSteps

LANES = 16  # chunk of a vectorised copy; the code generator splits it where registers are narrower


def copy_row(geometry: ConvGeometry):
    """Inline ``(X, image, n, rows, A, i, c0)``: im2col row n of an image, order (KH, KW, C), into row i of A [_, K].

    The geometry's C channels are those of X from c0 on. Rows at or beyond ``rows`` and entries in the padding become
    zeros.
    """
    H, W, C, KH, KW, OW = geometry.H, geometry.W, geometry.C, geometry.KH, geometry.KW, geometry.OW
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    body, tail = C // LANES, C % LANES

    @T.inline
    def inline(X, image, n, rows, A, i, c0):
        for ky in range(KH):
            for kx in range(KW):
                iy = T.meta_var(n // OW * SH - PT + ky * DH)
                ix = T.meta_var(n % OW * SW - PL + kx * DW)
                k = T.meta_var((ky * KW + kx) * C)
                if n < rows and iy >= 0 and iy < H and ix >= 0 and ix < W:
                    for c in range(body):
                        for j in T.vectorized(LANES):
                            A[i, k + c * LANES + j] = X[image, iy, ix, c0 + c * LANES + j]
                    for j in range(tail):
                        A[i, k + body * LANES + j] = X[image, iy, ix, c0 + body * LANES + j]
                else:
                    for c in range(body):
                        for j in T.vectorized(LANES):
                            A[i, k + c * LANES + j] = T.float32(0)
                    for j in range(tail):
                        A[i, k + body * LANES + j] = T.float32(0)

    return inline


def copy_floats(count: int):
    """Inline ``(A, i, k, X, start)``: ``count`` floats of flat X from ``start`` on to A[i, k:]."""
    body, eight = count // LANES, count % LANES // 8
    done = body * LANES + eight * 8

    @T.inline
    def inline(A, i, k, X, start):
        for c in range(body):
            for j in T.vectorized(LANES):
                A[i, k + c * LANES + j] = X[start + c * LANES + j]
        for _ in range(eight):
            for j in T.vectorized(8):
                A[i, k + body * LANES + j] = X[start + body * LANES + j]
        for j in range(count - done):
            A[i, k + done + j] = X[start + done + j]

    return inline


def zero_floats(count: int, dtype: str = "float32"):
    """Inline ``(A, i, k)``: ``count`` zeros to A[i, k:]."""
    body, zero = count // LANES, tirx.const(0.0, dtype)

    @T.inline
    def inline(A, i, k):
        for c in range(body):
            for j in T.vectorized(LANES):
                A[i, k + c * LANES + j] = zero
        for j in range(count - body * LANES):
            A[i, k + body * LANES + j] = zero

    return inline


def copy_units(geometry: ConvGeometry, steps: KSteps, dtype: str = "float32"):
    """Inline ``(X, image, n, inside, A, i, step)``: the entries of one step of K of row n of an image to row i of A.

    X is flat. Entries in the padding, and all of a row that is not ``inside``, become zeros.
    """
    H, W, C, KW, OW = geometry.H, geometry.W, geometry.C, geometry.KW, geometry.OW
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    parts, entries, units, together = steps.parts, steps.entries, steps.units, steps.together
    copy, zero = copy_floats(entries), zero_floats(entries, dtype)

    @T.inline
    def inline(X, image, n, inside, A, i, step):
        for q in range(T.min(together, units - step * together)):
            tap = T.meta_var((step * together + q) // parts)
            c0 = T.meta_var((step * together + q) % parts * entries)
            iy = T.meta_var(n // OW * SH - PT + tap // KW * DH)
            ix = T.meta_var(n % OW * SW - PL + tap % KW * DW)
            if inside and iy >= 0 and iy < H and ix >= 0 and ix < W:
                copy(A, i, q * entries, X, ((image * H + iy) * W + ix) * C + c0)
            else:
                zero(A, i, q * entries)

    return inline


def copy_runs(geometry: ConvGeometry, dtype: str = "float32"):
    """Inline ``(X, image, n, inside, A, i)``: a whole row as ``copy_units`` makes it, away from the padding in runs.

    The taps of a kernel row lie side by side in the input, unless they are dilated.
    """
    H, W, C, KH, KW, OW = geometry.H, geometry.W, geometry.C, geometry.KH, geometry.KW, geometry.OW
    (SH, SW), (DH, _), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    copy = copy_floats(KW * C)
    slow = copy_units(geometry, KSteps(1, C, KH * KW, KH * KW), dtype)

    @T.inline
    def inline(X, image, n, inside, A, i):
        iy = T.meta_var(n // OW * SH - PT)
        ix = T.meta_var(n % OW * SW - PL)
        if inside and iy >= 0 and iy + (KH - 1) * DH < H and ix >= 0 and ix + KW <= W:
            for ky in range(KH):
                copy(A, i, ky * (KW * C), X, ((image * H + iy + ky * DH) * W + ix) * C)
        else:
            slow(X, image, n, inside, A, i, 0)

    return inline
