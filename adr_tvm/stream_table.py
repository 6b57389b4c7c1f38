"""The table of centroids that a layer keeps over batches (``docs/algorithm.md``, clause 16).

For each segment it has C = min(2^H, slots) places, each for one key: its centroid, the key, and the step that used it
last, from 1; 0 is a free place. Ning, Guan, Shen, "Adaptive Deep Reuse" (ICDE 2019): cluster reuse.
"""

from __future__ import annotations

from dataclasses import dataclass

from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting

DEFAULT_SLOTS = 4096
STREAMING = ("pixel", "segment")
"""Granularities whose centroids can persist."""


@dataclass(frozen=True)
class StreamTable:
    """Shape of a table.

    Attributes:
        segments: S.
        slots: places C of a segment.
        length: entries L of a centroid.
    """

    segments: int
    slots: int
    length: int

    @classmethod
    def of(cls, geometry: ConvGeometry, setting: ReuseSetting, slots: int) -> StreamTable:
        """The table of a layer with at most ``slots`` places a segment."""
        return cls(geometry.segments(setting), min(2**setting.H, slots), geometry.vector_length(setting))

    @property
    def parts(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, dtype) of its tensors by name, in the order in which operators take them; an empty table is zeros."""
        places = (self.segments, self.slots)
        return {"centroids": ((*places, self.length), "float32"), "keys": (places, "int32"), "used": (places, "int32")}


def check_streaming(setting: ReuseSetting, slots: int) -> None:
    """See that centroids of a setting can persist.

    Raises:
        ValueError: they cannot; says why.
    """
    if setting.scope != "batch":
        raise ValueError(f"scope={setting.scope} starts anew with each image: clusters that persist need scope=batch")
    if setting.granularity not in STREAMING:
        allowed = " and ".join(STREAMING)
        raise ValueError(f"granularity={setting.granularity} has no clusters that persist: only {allowed} have")
    if setting.hash == "exact":
        raise ValueError("hash=exact has no keys by which clusters could persist")
    if slots < 1:
        raise ValueError(f"the table has {slots} places a segment, expected at least 1")
