"""The setting of one reuse layer: what is clustered, how it is hashed and over what scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Granularity = Literal["segment", "pixel", "row"]
HashFamily = Literal["gaussian", "pca", "learned", "exact"]
Scope = Literal["image", "batch"]
Table = Literal["float32", "bfloat16", "int16", "int8"]
InputGradient = Literal["averaged", "sampled", "straight-through"]

GRANULARITIES: tuple[str, ...] = get_args(Granularity)
HASH_FAMILIES: tuple[str, ...] = get_args(HashFamily)
SCOPES: tuple[str, ...] = get_args(Scope)
TABLES: tuple[str, ...] = get_args(Table)
INPUT_GRADIENTS: tuple[str, ...] = get_args(InputGradient)
MAX_BITS = 20


@dataclass(frozen=True)
class ReuseSetting:
    """How one layer reuses.

    Attributes:
        granularity: what a neuron vector is (``docs/algorithm.md``).
        L: length of a neuron vector in entries; ignored by ``row``, whose vectors are whole rows.
        H: hash bits, 1 to 20; ignored by ``exact``.
        hash: family of the hash planes.
        scope: ``image`` clusters each image alone, ``batch`` the whole call.
        gain: scale each product by <x, c> / <c, c>.
        max_clusters: clusters in one unit above which the unit runs dense; None never does.
        table: type in which products of centroids are kept and added up; only ``float32`` with ``row`` or ``exact``.
    """

    granularity: Granularity = "pixel"
    L: int = 16
    H: int = 8
    hash: HashFamily = "pca"
    scope: Scope = "image"
    gain: bool = False
    max_clusters: int | None = None
    table: Table = "float32"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("granularity", self.granularity, GRANULARITIES),
            ("hash", self.hash, HASH_FAMILIES),
            ("scope", self.scope, SCOPES),
            ("table", self.table, TABLES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
        if self.L < 1:
            raise ValueError(f"L is {self.L}, expected at least 1")
        if not 1 <= self.H <= MAX_BITS:
            raise ValueError(f"H is {self.H}, expected 1 to {MAX_BITS}")
        if self.gain and (self.hash == "exact" or self.granularity == "row"):
            raise ValueError("gain is for pixel and segment with sign hashes: not for hash=exact or granularity=row")
        if self.table != "float32" and (self.hash == "exact" or self.granularity == "row"):
            raise ValueError(
                f"table={self.table} is for pixel and segment with sign hashes: not for hash=exact or granularity=row"
            )
        if self.table.startswith("int") and self.gain:
            raise ValueError(f"gain scales each product on its own: not with table={self.table}")
        if self.max_clusters is not None and self.max_clusters < 0:
            raise ValueError(f"max_clusters is {self.max_clusters}, expected 0 or more")

    @property
    def lossless(self) -> bool:
        """Whether the layer is bit-identical to the dense one."""
        return self.granularity == "row" and self.hash == "exact"
