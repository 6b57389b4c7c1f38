"""im2col rows on the fly: copying one row of X (N x K), or one neuron vector of it, into a local buffer.

Everything here is a TIR inline function, expanded in the kernels that use it; no im2col matrix is ever stored.
"""

from __future__ import annotations

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry

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
