"""The settings that are tried for a layer, before anything is known about its data."""

from __future__ import annotations

from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.options import SearchOptions
from adr_tvm.settings import ReuseSetting

PIXEL_LENGTHS = (4, 8, 16, 32)
BITS = (4, 6, 8, 10, 12)
ROW_BITS = (6, 8, 10, 12)
LONGEST_HASHED_ROW = 2048  # entries; the hash of a longer row costs more than its few members save


def settings_grid(geometry: ConvGeometry, options: SearchOptions) -> list[ReuseSetting]:
    """Settings worth looking at, lossless first.

    ``segment`` is tried only when asked for: hashing each tap's copy of a pixel again costs KH * KW times what
    ``pixel`` does.
    """
    r = options
    scope = r.scope or "image"
    grid: list[ReuseSetting] = []
    if r.hash in (None, "exact") and r.granularity in (None, "row") and r.L is None and r.H is None:
        grid.append(ReuseSetting(granularity="row", hash="exact", L=1, H=1, scope=scope))  # type: ignore[arg-type]
    if r.lossless:
        return grid
    for granularity in _granularities(r):
        if r.hash == "exact" and granularity == "row":
            continue
        for L in _lengths(geometry, granularity, r.L):
            for H in (r.H,) if r.H else (1,) if r.hash == "exact" else ROW_BITS if granularity == "row" else BITS:
                grid.append(
                    ReuseSetting(
                        granularity=granularity,  # type: ignore[arg-type]
                        L=L,
                        H=H,
                        hash=r.hash or "pca",  # type: ignore[arg-type]
                        scope=scope,  # type: ignore[arg-type]
                    )
                )
    return grid


def _granularities(options: SearchOptions) -> tuple[str, ...]:
    if options.granularity is not None:
        return (options.granularity,)
    return ("pixel", "row") if options.L is None else ("pixel",)  # rows have a length of their own


def _lengths(geometry: ConvGeometry, granularity: str, fixed: int | None) -> tuple[int, ...]:
    if granularity == "row":
        return (geometry.K,) if geometry.K <= LONGEST_HASHED_ROW else ()
    if fixed:
        return (fixed,)
    if granularity == "segment":
        taps = geometry.KH * geometry.KW
        return tuple(sorted({min(geometry.K, taps), min(geometry.K, 2 * taps)}))
    return tuple(sorted({min(geometry.C, L) for L in PIXEL_LENGTHS}))
