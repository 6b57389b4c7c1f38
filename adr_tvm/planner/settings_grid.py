"""The settings that are tried for a layer, before anything is known about its data."""

from __future__ import annotations

from adr_tvm.geometry import ConvGeometry
from adr_tvm.planner.options import SearchOptions
from adr_tvm.settings import ReuseSetting

FINE_LENGTHS, FINE_BITS = (4, 6, 8, 12, 16, 24, 32), (4, 6, 8, 10, 12, 14, 16, 18, 20)
COARSE_LENGTHS, COARSE_BITS = (4, 8, 16, 32), (4, 6, 8, 10, 12)
ROW_BITS = (6, 8, 10, 12)
KEYS_PER_VECTOR = 64  # more keys than that leave hardly two vectors together
LONGEST_HASHED_ROW = 2048  # entries; the hash of a longer row costs more than its few members save


def settings_grid(
    geometry: ConvGeometry, options: SearchOptions, images: int = 1, fine: bool = False
) -> list[ReuseSetting]:
    """Settings worth looking at, lossless first; of one shape of vectors by growing number of bits.

    Args:
        images: of a unit, where it is the batch.
        fine: whether the layer is worth a close look.
    """
    r = options
    scope = r.scope or "image"
    grid: list[ReuseSetting] = []
    if r.hash in (None, "exact") and r.granularity in (None, "row") and r.L is None and r.H is None:
        grid.append(ReuseSetting(granularity="row", hash="exact", L=1, H=1, scope=scope))  # type: ignore[arg-type]
    if r.lossless:
        return grid
    for granularity in _granularities(r, geometry):
        if r.hash == "exact" and granularity == "row":
            continue
        for L in _lengths(geometry, granularity, r.L, fine):
            for H in (r.H,) if r.H else (1,) if r.hash == "exact" else _bits(granularity, fine):
                setting = ReuseSetting(
                    granularity=granularity,  # type: ignore[arg-type]
                    L=L,
                    H=H,
                    hash=r.hash or "pca",  # type: ignore[arg-type]
                    scope=scope,  # type: ignore[arg-type]
                )
                unit = geometry.positions(setting) * (images if scope == "batch" else 1)
                if r.H or KEYS_PER_VECTOR * unit >= 2**H:
                    grid.append(setting)
    return grid


def _bits(granularity: str, fine: bool) -> tuple[int, ...]:
    if granularity == "row":
        return ROW_BITS
    return FINE_BITS if fine else COARSE_BITS


def _granularities(options: SearchOptions, geometry: ConvGeometry) -> tuple[str, ...]:
    if options.granularity is not None:
        return (options.granularity,)
    found = ["pixel"]
    if geometry.KH * geometry.KW > 1 and options.hash != "exact":  # of 1x1 kernels the segments are pixels
        found.append("segment")
    if options.L is None:  # rows have a length of their own
        found.append("row")
    return tuple(found)


def _lengths(geometry: ConvGeometry, granularity: str, fixed: int | None, fine: bool) -> tuple[int, ...]:
    if granularity == "row":
        return (geometry.K,) if geometry.K <= LONGEST_HASHED_ROW else ()
    if fixed:
        return (fixed,)
    if granularity == "segment":
        taps = geometry.KH * geometry.KW
        return tuple(sorted({min(geometry.K, taps), min(geometry.K, 2 * taps)}))
    return tuple(sorted({min(geometry.C, L) for L in (FINE_LENGTHS if fine else COARSE_LENGTHS)}))
