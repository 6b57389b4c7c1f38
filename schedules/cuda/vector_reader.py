"""Reading neuron vectors of ``pixel`` and ``segment`` from X, a thread a vector, a few entries at once.

Positions are those of the id map (``schedules/neuron_vectors.py``): of ``pixel`` that is the image with the padding
around it, so that what follows needs no bounds tests; in the padding, and where no tap reads, there is no vector.
"""

from __future__ import annotations

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.settings import ReuseSetting


class VectorReader:
    """How the vectors of a layer are read; X is flat.

    Attributes:
        V: entries that are read at once; the length of every vector is a multiple of it.
    """

    def __init__(self, geometry: ConvGeometry, setting: ReuseSetting):
        self.source = vector_source(geometry, setting)
        self.pixel = setting.granularity == "pixel"
        self.V = 4 if self.pixel and geometry.C % 4 == 0 and self.source.L % 4 == 0 else 1

    def find(self):
        """Inline ``(base, corner, seen, image, p, s)``: where vector (p, s) of an image lies.

        ``base`` int64 [1], in steps of V entries, and ``corner`` int32 [2] are for ``load``. ``seen`` int32 [1] is 1 if
        there is a vector; of ``segment`` it is 0, and ``load`` sets it when it meets an entry inside the image.
        """
        g, source, V = self.source.geometry, self.source, self.V
        H, W, C, OW, (SH, SW), (PT, PL, _, PR) = g.H, g.W, g.C, g.OW, g.strides, g.padding
        L, columns = source.L, W + PL + PR

        def exists(p):
            iy, ix = p // columns - PT, p % columns - PL
            inside = T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W))
            return T.And(inside, source.is_read(iy * W + ix))

        @T.inline
        def of_pixel(base, corner, seen, image, p, s):
            seen[0] = 0
            base[0] = T.int64(0)
            if exists(p):
                seen[0] = 1
                pixel = T.meta_var(T.cast(image, "int64") * (H * W) + (p // columns - PT) * W + (p % columns - PL))
                base[0] = pixel * (C // V) + s * (L // V)

        @T.inline
        def of_window(base, corner, seen, image, p, s):
            seen[0] = 0
            base[0] = T.cast(image, "int64") * (H * W * C)
            corner[0] = p // OW * SH - PT
            corner[1] = p % OW * SW - PL

        return of_pixel if self.pixel else of_window

    def load(self):
        """Inline ``(X, base, corner, seen, values, s, i)``: values[0:V] = entries i V ... of the vector, i V < L.

        Zeros in the padding, behind the end of a short last segment, and where there is no vector.
        """
        g, L, V = self.source.geometry, self.source.L, self.V
        H, W, C, K, KW, taps, (DH, DW) = g.H, g.W, g.C, g.K, g.KW, g.KH * g.KW, g.dilation

        @T.inline
        def of_pixel(X, base, corner, seen, values, s, i):
            if T.And(seen[0] == 1, s * L + i * V < C):
                for v in T.vectorized(V):
                    values[v] = X[(base[0] + i) * V + v]
            else:
                for v in T.vectorized(V):
                    values[v] = T.float32(0)

        @T.inline
        def of_window(X, base, corner, seen, values, s, i):
            k = T.meta_var(s * L + i)
            iy = T.meta_var(corner[0] + k % taps // KW * DH)
            ix = T.meta_var(corner[1] + k % KW * DW)
            values[0] = T.float32(0)
            if T.And(T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W)), k < K):
                seen[0] = 1
                values[0] = X[base[0] + (iy * W + ix) * C + k // taps]

        return of_pixel if self.pixel else of_window
