"""``planes.npz``: the hash planes of a plan, with reproducible bytes.

Layers are named by their position in the plan (``3.planes`` f32 [S, L, H], ``3.thresholds`` f32 [S, H]),
because a node name may hold anything. Nothing is compressed or pickled.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from adr_tvm.errors import ModelError
from adr_tvm.settings import ReuseSetting


class HashPlanesLike(Protocol):
    """Hash planes of one layer; ``adr_tvm.hashing.planes`` makes them, ``LayerPlanes`` is what a loaded plan has."""

    @property
    def planes(self) -> np.ndarray:
        """Directions, f32 [S, L, H]."""

    @property
    def thresholds(self) -> np.ndarray:
        """Thresholds, f32 [S, H]; +inf switches a bit off."""


@dataclass(frozen=True, eq=False)
class LayerPlanes:
    """Hash planes as read from a plan: ``planes`` f32 [S, L, H], ``thresholds`` f32 [S, H]."""

    planes: np.ndarray
    thresholds: np.ndarray


def pack_planes(planes: Mapping[str, HashPlanesLike], positions: Mapping[str, int]) -> bytes:
    """The content of ``planes.npz`` for these layers; ``np.savez`` promises no particular bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for layer, position in positions.items():
            found = planes[layer]
            for member, array in zip(_members(position), (found.planes, found.thresholds), strict=True):
                content = io.BytesIO()
                np.lib.format.write_array(content, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{member}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.create_system = 3
                archive.writestr(entry, content.getvalue())
    return buffer.getvalue()


def unpack_planes(data: bytes, positions: Mapping[str, int], where: str) -> dict[str, LayerPlanes]:
    """The planes of the layers in ``positions`` from the content of ``planes.npz``.

    Raises:
        ModelError: the content is damaged or lacks a layer.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ModelError(f"{where} is compressed: not a file this program wrote")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for layer, position in positions.items():
                missing = [member for member in _members(position) if member not in arrays.files]
                if missing:
                    raise ModelError(f"{where} has no {missing[0]} for layer {layer!r}")
            return {
                layer: LayerPlanes(*(arrays[member] for member in _members(position)))
                for layer, position in positions.items()
            }
    except (ValueError, EOFError, OSError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{where} is damaged: {error}") from error


def check_planes(layer: str, planes: HashPlanesLike | None, setting: ReuseSetting, where: str) -> None:
    """Refuse planes that do not fit the layer's setting.

    Raises:
        ModelError: they are missing, not f32 [S, L, H] and [S, H], or not finite (a threshold may be +inf).
    """
    if planes is None:
        raise ModelError(f"{where}: layer {layer!r} has no hash planes")
    directions, thresholds = np.asarray(planes.planes), np.asarray(planes.thresholds)
    label = f"{where}: the hash planes of layer {layer!r}"
    if directions.dtype != np.float32 or thresholds.dtype != np.float32:
        raise ModelError(f"{label} are {directions.dtype} and {thresholds.dtype}, expected float32")
    shapes = f"{list(directions.shape)} with thresholds {list(thresholds.shape)}"
    fits = directions.ndim == 3 and thresholds.shape == (directions.shape[0], directions.shape[2])
    if not fits or 0 in directions.shape:
        raise ModelError(f"{label} have shape {shapes}, expected [S, L, H] and [S, H]")
    if directions.shape[2] != setting.H or (setting.granularity != "row" and directions.shape[1] > setting.L):
        raise ModelError(f"{label} have shape {shapes}, which does not fit L={setting.L}, H={setting.H}")
    if not np.isfinite(directions).all() or np.isnan(thresholds).any() or np.isneginf(thresholds).any():
        raise ModelError(f"{label} hold NaN or Inf")


def _members(position: int) -> tuple[str, str]:
    return f"{position}.planes", f"{position}.thresholds"
