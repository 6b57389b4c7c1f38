"""Where the neuron vectors of an operator lie: loading one into a local buffer, and its place in the id map.

A source enumerates the vectors of a unit in the order of ``docs/algorithm.md`` (clause 1) and knows

- ``entries``: length of what is cut into segments (C or K);
- ``per_image``: positions of one image that may carry a vector in each segment;
- ``map_size``: int32 entries of the id map of one image and segment (``pixel``: its pixels with the padding around
  them, so that every tap finds an id without a bounds test);
- ``load``: inline ``(X, image, position, s, v, seen)`` that copies vector (position, s) to v [Lp], zeros beyond L,
  and sets seen[0] to 1 if any entry lies inside the image;
- ``is_read``: whether any tap reads a position;
- ``map_index``: id-map index of a position; ``tap_index``: id-map index that tap t of output pixel n reads;
- ``tap_position``: the position it reads, where that lies inside the image;
- ``weight_row``: row of the packed weights that entry l of segment s meets under tap t;
- ``grid``: ``tap_index`` as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.transpose_tile import lanes, splat
from adr_tvm.settings import ReuseSetting

LANES = 16


@dataclass(frozen=True)
class TapGrid:
    """Which ids an output pixel reads: tap (ky, kx) of pixel (y, x) reads the id map at
    (y SH + ky DH) * pitch + x SW + kx DW.

    Attributes:
        rows, columns: output pixels; all in one row where rows of the map follow each other without padding.
    """

    rows: int
    columns: int
    KH: int
    KW: int
    SH: int
    SW: int
    DH: int
    DW: int
    pitch: int


@dataclass(frozen=True)
class VectorSource:
    """Neuron vectors of one operator; see the module."""

    geometry: ConvGeometry
    L: int
    entries: int
    taps: int
    per_image: int
    map_size: int
    load: Any
    is_read: Callable[[Any], Any]
    map_index: Callable[[Any], Any]
    tap_index: Callable[[Any, Any], Any]
    tap_position: Callable[[Any, Any], Any]
    weight_row: Callable[[Any, Any, Any], Any]
    grid: TapGrid

    @property
    def segments(self) -> int:
        """S, the last segment perhaps short."""
        return -(-self.entries // self.L)

    @property
    def Lp(self) -> int:
        """L rounded up to whole vectors: the length of the local buffer and of stored centroids."""
        return -(-self.L // LANES) * LANES

    def valid_length(self, s: Any) -> Any:
        """Entries of segment s that exist; less than L in a short last segment."""
        return T.min(self.L, self.entries - s * self.L) if self.entries % self.L else self.L


def vector_source(geometry: ConvGeometry, setting: ReuseSetting) -> VectorSource:
    """The source of a setting with granularity ``pixel`` or ``segment``."""
    if setting.granularity == "pixel":
        return _pixel_source(geometry, geometry.vector_length(setting))
    return _segment_source(geometry, geometry.vector_length(setting))


def _is_read(position: Any, size: int, read: tuple[int, ...], out: int, kernel: int, stride: int, pad: int, dil: int):
    """Whether any tap reads a row (or column) of the input."""
    if len(read) == size:
        return tirx.const(True, "bool")
    hits = [
        T.And(
            T.And(position + pad >= k * dil, (position + pad - k * dil) % stride == 0),
            (position + pad - k * dil) // stride < out,
        )
        for k in range(kernel)
    ]
    result = hits[0]
    for hit in hits[1:]:
        result = T.Or(result, hit)
    return result


def _one_row(g: ConvGeometry) -> TapGrid:
    return TapGrid(1, g.rows, 1, 1, 1, 1, 1, 1, g.rows)


def _pixel_source(g: ConvGeometry, L: int) -> VectorSource:
    segments = -(-g.C // L)
    Lp = -(-L // LANES) * LANES
    (PT, PL, PB, PR), (SH, SW), (DH, DW) = g.padding, g.strides, g.dilation
    rows, cols = g.H + PT + PB, g.W + PL + PR
    H, W, C, KW = g.H, g.W, g.C, g.KW
    body, tail, short = L // LANES, L % LANES, C % L

    def is_short(s):
        return s == segments - 1 if short else False

    def is_read(position):
        row = _is_read(position // W, H, g.read_rows, g.OH, g.KH, SH, PT, DH)
        return T.And(row, _is_read(position % W, W, g.read_cols, g.OW, g.KW, SW, PL, DW))

    @T.inline
    def load(X, image, position, s, v, seen):
        iy = T.meta_var(position // W)
        ix = T.meta_var(position % W)
        for c in range(Lp // LANES):
            for j in T.vectorized(LANES):
                v[c * LANES + j] = T.float32(0)
        seen[0] = 0
        if is_read(position):
            seen[0] = 1
            if is_short(s):
                for j in range(short):
                    v[j] = X[image, iy, ix, s * L + j]
            else:
                for c in range(body):
                    for j in T.vectorized(LANES):
                        v[c * LANES + j] = X[image, iy, ix, s * L + c * LANES + j]
                for j in range(tail):
                    v[body * LANES + j] = X[image, iy, ix, s * L + body * LANES + j]

    return VectorSource(
        geometry=g,
        L=L,
        entries=C,
        taps=g.KH * g.KW,
        per_image=H * W,
        map_size=rows * cols,
        load=load,
        is_read=is_read,
        map_index=lambda p: (p // W + PT) * cols + p % W + PL,
        tap_index=lambda n, t: (n // g.OW * SH + t // KW * DH) * cols + n % g.OW * SW + t % KW * DW,
        tap_position=lambda n, t: (n // g.OW * SH - PT + t // KW * DH) * W + n % g.OW * SW - PL + t % KW * DW,
        weight_row=lambda s, t, l: t * C + s * L + l,
        grid=_one_row(g)
        if g.KH * g.KW * SH * SW == 1 and not any(g.padding)
        else TapGrid(g.OH, g.OW, g.KH, KW, SH, SW, DH, DW, cols),
    )


def _segment_source(g: ConvGeometry, L: int) -> VectorSource:
    Lp = -(-L // LANES) * LANES
    (PT, PL, _, _), (SH, SW), (DH, DW) = g.padding, g.strides, g.dilation
    H, W, C, KW, K, OW, taps = g.H, g.W, g.C, g.KW, g.K, g.OW, g.KH * g.KW

    @T.inline
    def load(X, image, position, s, v, seen):
        for c in range(Lp // LANES):
            for j in T.vectorized(LANES):
                v[c * LANES + j] = T.float32(0)
        seen[0] = 0
        for j in range(L):
            k = T.meta_var(s * L + j)
            iy = T.meta_var(position // OW * SH - PT + k % taps // KW * DH)
            ix = T.meta_var(position % OW * SW - PL + k % KW * DW)
            if k < K and iy >= 0 and iy < H and ix >= 0 and ix < W:
                v[j] = X[image, iy, ix, k // taps]
                seen[0] = 1

    return VectorSource(
        geometry=g,
        L=L,
        entries=K,
        taps=1,
        per_image=g.rows,
        map_size=g.rows,
        load=load,
        is_read=lambda p: tirx.const(True, "bool"),
        map_index=lambda p: p,
        tap_index=lambda n, t: n,
        tap_position=lambda n, t: n,
        weight_row=lambda s, t, l: (s * L + l) % taps * C + (s * L + l) // taps,
        grid=_one_row(g),
    )


def pixel_entries(X: Any, image: Any, pixel: Any, geometry: ConvGeometry, first: Any, count: int) -> Any:
    """Entries first ... first + count of a pixel as a vector of 16, zeros behind; ``count`` 1 to 16."""
    row, column = pixel // geometry.W, pixel % geometry.W
    if count == LANES:
        return X[image, row, column, lanes(first)]
    parts, lane, width = [], 0, LANES // 2
    while width:
        if count & width:
            parts.append(
                X[image, row, column, lanes(first + lane, width)] if width > 1 else X[image, row, column, first + lane]
            )
            lane += width
        width //= 2
    parts.append(splat(T.float32(0), LANES - lane) if lane < LANES - 1 else T.float32(0))
    return T.Shuffle(parts, list(range(LANES)))
