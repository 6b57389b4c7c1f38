"""How the backward pass of a reused layer is cut up on a GPU: pieces of clusters, rounds, parts.

The members of the clusters of a group (a segment of a unit) are sorted by cluster, in ascending order. A *piece* is a
run of members of one cluster that does not cross a multiple of ``PIECE`` in that list, so that many blocks share a
cluster which holds half of the positions. The sums of dZ over the members of a piece, for every tap, are a row of a
table; D of ``docs/algorithm.md`` (clause B2) is never made, since both gradients are linear in it:

    dW_t = sum over pieces i of C[cluster of i]^T D_i,t        dC[c] = (sum over its pieces i, t of D_i,t W_t^T) / n_c

Sums are fp32, and their order follows from shapes and ids alone. Whole numbers, as the centroids are summed in, would
need a scale, and gradients have none: they differ by orders of magnitude between channels, and where they overflow the
loss scaling must see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.settings import ReuseSetting

PIECE = 128  # members of a piece, at most
TABLE_BYTES = 64 << 20  # aim for the sums of a round, were there as many pieces as there can be
LEAST_PIECES = 64  # of a round
BLOCKS = 512  # that should share the weight gradient, about


@dataclass(frozen=True)
class ClusterPieces:
    """See the module.

    Attributes:
        geometry: of the layer.
        setting: how it reuses.
        batch: images of a call.
        piece: members of a piece, at most.
        table_bytes: aim for the table of a round.
    """

    geometry: ConvGeometry
    setting: ReuseSetting
    batch: int
    piece: int
    table_bytes: int

    @classmethod
    def of(cls, geometry: ConvGeometry, setting: ReuseSetting, batch: int) -> ClusterPieces:
        """The pieces of a layer."""
        return cls(geometry, setting, batch, PIECE, TABLE_BYTES)

    @property
    def _source(self) -> Any:
        return vector_source(self.geometry, self.setting)  # a row is a segment of all entries

    @property
    def by_row(self) -> bool:
        """Whether neuron vectors are whole im2col rows, in the order (KH, KW, C)."""
        return self.setting.granularity == "row"

    @property
    def units(self) -> int:
        """U: what is clustered apart."""
        return int(units(self.setting, self.batch)[0])

    @property
    def images(self) -> int:
        """Images of a unit."""
        return int(units(self.setting, self.batch)[1])

    @property
    def segments(self) -> int:
        """S."""
        return int(self._source.segments)

    @property
    def groups(self) -> int:
        """Segments of all units, clustered apart."""
        return self.units * self.segments

    @property
    def L(self) -> int:
        """Entries of a vector."""
        return int(self._source.L)

    @property
    def Lp(self) -> int:
        """Entries of a stored centroid."""
        return self.geometry.K if self.by_row else int(self._source.Lp)

    @property
    def capacity(self) -> int:
        """Clusters of a group, at most."""
        return int(capacity(self.setting, self.images * self._source.per_image))

    @property
    def centroid_rows(self) -> int:
        """Rows of the stored centroids of a group."""
        return self.capacity if self.by_row else self.capacity + SPARE_CENTROIDS

    @property
    def map_size(self) -> int:
        """Entries of the id map of an image."""
        return int(self._source.map_size)

    @property
    def positions(self) -> int:
        """Entries N of the id map of a group."""
        return self.images * self.map_size

    @property
    def taps(self) -> int:
        """Taps that read a position."""
        return int(self._source.taps)

    @property
    def width(self) -> int:
        """Sums of a piece: output channels for each tap."""
        return self.taps * self.geometry.M

    def valid_length(self, s: Any) -> Any:
        """Entries of segment s that exist."""
        return self._source.valid_length(s)

    def weight_row(self, s: Any, t: Any, l: Any) -> Any:
        """Row of the weights [KH KW C, M] that entry l of segment s meets under tap t."""
        return l if self.by_row else self._source.weight_row(s, t, l)

    @property
    def pieces(self) -> int:
        """Pieces of a group, at most."""
        return min(self.positions, -(-self.positions // self.piece) + self.capacity)

    @property
    def _affordable_rows(self) -> int:
        return max(LEAST_PIECES, self.table_bytes // (4 * self.width * self.units))

    @property
    def piece_rounds(self) -> int:
        """Rounds in which the pieces of a group are summed."""
        return -(-self.pieces // min(self.pieces, self._affordable_rows))

    @property
    def rows(self) -> int:
        """Pieces of a group in a round."""
        return -(-self.pieces // self.piece_rounds)

    @property
    def segment_rounds(self) -> int:
        """Rounds in which the segments are taken."""
        fitting = max(1, self.table_bytes // (4 * self.width * self.units * self.rows))
        return -(-self.segments // min(fitting, self.segments))

    @property
    def together(self) -> int:
        """Segments of a round."""
        return -(-self.segments // self.segment_rounds)

    # Shapes of what the kernels hand each other.

    @property
    def members_shape(self) -> tuple[int, ...]:
        """Of ids and of the sorted positions."""
        return self.groups, self.positions

    @property
    def firsts_shape(self) -> tuple[int, ...]:
        """Of where each piece begins among the members; the end of the last behind it."""
        return self.groups, self.pieces + 1

    @property
    def owners_shape(self) -> tuple[int, ...]:
        """Of the cluster of each piece."""
        return self.groups, self.pieces

    @property
    def leading_shape(self) -> tuple[int, ...]:
        """Of the first piece of each cluster; the number of pieces behind the last."""
        return self.groups, self.capacity + 1

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Of the sums of a round."""
        return self.units, self.together, self.rows, self.width

    @property
    def centroids_shape(self) -> tuple[int, ...]:
        """Of the centroids as the forward pass stores them."""
        return self.units, self.segments, self.centroid_rows, self.Lp

    @property
    def centroid_sums_shape(self) -> tuple[int, ...]:
        """Of D W^T of each piece."""
        return self.groups, self.pieces, self.L

    @property
    def centroid_gradients_shape(self) -> tuple[int, ...]:
        """Of the centroids' gradient."""
        return self.groups, self.capacity, self.L
