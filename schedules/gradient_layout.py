"""How the backward pass of a reused layer is cut up: positions, taps, blocks of dZ that stay in L2, tasks.

A *position* is where neuron vectors lie: an input pixel (``pixel``) or an output pixel, of a 1x1 convolution over the
im2col rows (``segment``, ``row``). Tap (ky, kx) of position (y, x) reads dZ at

    oy = a - b,   a = (y + PT) div SH,   b = (ky DH) div SH,   if (y + PT) mod SH = (ky DH) mod SH,

and likewise in x: a *phase* of positions meets only the taps of the same remainders, each at a fixed distance. dZ of
some images (or of a band of one image) and some channels is copied with zeros around it, so no distance needs a test.

Everything follows from shapes, so sums have the same order at any number of threads (``docs/algorithm.md``, clause B8).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import capacity
from adr_tvm.schedules.neuron_vectors import LANES
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.settings import ReuseSetting

BLOCK_BYTES = 1344 * 1024  # of dZ: what stays in L2 (1 to 2 MiB) beside the tables
TASKS = 8  # among which a call is divided
SPARE_REGISTERS = 6
IN_FLIGHT = 8  # sums that hide the latency of an addition
MAX_VECTORS = 4  # of output channels in a block


@dataclass(frozen=True)
class Axis:
    """Rows or columns of positions and of dZ.

    Attributes:
        size: positions.
        out: of dZ.
        kernel, stride, pad, dilation: of the convolution; pad is that before the first position.
    """

    size: int
    out: int
    kernel: int
    stride: int
    pad: int
    dilation: int

    @property
    def first(self) -> int:
        """The least a."""
        return self.pad // self.stride

    @property
    def count(self) -> int:
        """Values of a."""
        return (self.size - 1 + self.pad) // self.stride - self.first + 1

    @property
    def reach(self) -> int:
        """The largest b."""
        return (self.kernel - 1) * self.dilation // self.stride

    @property
    def before(self) -> int:
        """Zeros read before the first of dZ."""
        return max(0, self.reach - self.first)

    @property
    def pitch(self) -> int:
        """dZ and the zeros after it, which serve as those before the next row or image too."""
        return self.out + max(self.before, self.first + self.count - self.out, 0)

    def taps(self, phase: int) -> list[tuple[int, int]]:
        """(tap, b) of a phase."""
        found = ((k, k * self.dilation) for k in range(self.kernel))
        return [(k, at // self.stride) for k, at in found if at % self.stride == phase]


@dataclass(frozen=True)
class Phase:
    """The taps that some positions meet.

    Attributes:
        taps: (tap, distance in pixels of the block of dZ).
    """

    taps: list[tuple[int, int]]


@dataclass(frozen=True)
class GradientLayout:
    """See the module.

    Attributes:
        geometry: of the layer.
        setting: how it reuses.
        batch: images of a call.
        isa: the processor's.
    """

    geometry: ConvGeometry
    setting: ReuseSetting
    batch: int
    isa: Isa

    @cached_property
    def positions(self) -> ConvGeometry:
        """The convolution whose input pixels carry the vectors."""
        g = self.geometry
        return g if self.setting.granularity == "pixel" else ConvGeometry(g.OH, g.OW, g.K, 1, 1, g.M)

    @cached_property
    def rows(self) -> Axis:
        """Vertical."""
        p = self.positions
        return Axis(p.H, p.OH, p.KH, p.strides[0], p.padding[0], p.dilation[0])

    @cached_property
    def columns(self) -> Axis:
        """Horizontal."""
        p = self.positions
        return Axis(p.W, p.OW, p.KW, p.strides[1], p.padding[1], p.dilation[1])

    @property
    def taps(self) -> int:
        """Taps of a position's convolution."""
        return self.positions.KH * self.positions.KW

    @property
    def L(self) -> int:
        """Entries of a vector."""
        return self.geometry.vector_length(self.setting)

    @property
    def Lp(self) -> int:
        """L rounded up to whole vectors."""
        return -(-self.L // LANES) * LANES

    @property
    def segments(self) -> int:
        """S."""
        return self.geometry.segments(self.setting)

    def valid_length(self, s):
        """Entries of segment s that exist."""
        return T.min(self.L, self.positions.C - s * self.L) if self.positions.C % self.L else self.L

    def weight_row(self, s, t, l):
        """Row of the weights [KH KW C, M] that entry l of segment s meets under tap t."""
        g, k = self.geometry, s * self.L + l
        if self.setting.granularity == "pixel":
            return t * g.C + k
        return k if self.setting.granularity == "row" else k % (g.KH * g.KW) * g.C + k // (g.KH * g.KW)

    # Units and clusters.

    @property
    def units(self) -> int:
        """U: what is clustered apart."""
        return self.batch if self.setting.scope == "image" else 1

    @property
    def images(self) -> int:
        """Images of a unit."""
        return self.batch // self.units

    @property
    def capacity(self) -> int:
        """Clusters of a segment, at most."""
        p = self.positions
        return int(capacity(self.setting, self.images * p.H * p.W))

    @property
    def map_columns(self) -> int:
        """Columns of an id map, with the padding around it."""
        p = self.positions
        return p.W + p.padding[1] + p.padding[3]

    @property
    def map_size(self) -> int:
        """Entries of the id map of an image."""
        p = self.positions
        return (p.H + p.padding[0] + p.padding[2]) * self.map_columns

    # Taps and registers.

    @cached_property
    def phases(self) -> list[Phase]:
        """By (y + PT) mod SH, then (x + PL) mod SW."""
        rows, columns = self.rows, self.columns
        return [
            Phase(
                [
                    (ky * columns.kernel + kx, -by * columns.pitch - bx)
                    for ky, by in rows.taps(fy)
                    for kx, bx in columns.taps(fx)
                ]
            )
            for fy in range(rows.stride)
            for fx in range(columns.stride)
        ]

    @property
    def registers(self) -> int:
        """Sums that are in registers together."""
        return self.isa.registers - SPARE_REGISTERS

    @cached_property
    def vectors(self) -> int:
        """Vectors of output channels in a block: as few as keep the processor busy, so that dZ's block is small."""
        least = min((len(phase.taps) for phase in self.phases if phase.taps), default=1)
        return max(1, min(-(-IN_FLIGHT // least), MAX_VECTORS, -(-self.geometry.M // self.isa.lanes)))

    @property
    def channels(self) -> int:
        """Output channels of a block."""
        return self.vectors * self.isa.lanes

    @property
    def blocks(self) -> int:
        """Blocks of output channels."""
        return -(-self.geometry.M // self.channels)

    # Chunks: images or bands of an image, and the block of dZ that they read.

    @property
    def _image_bytes(self) -> int:
        return self.rows.pitch * self.columns.pitch * self.channels * 4

    @cached_property
    def bands(self) -> int:
        """Parts of an image; 1 where whole images fit."""
        if self._image_bytes <= BLOCK_BYTES:
            return 1
        row = self._image_bytes // self.rows.pitch
        fitting = max(1, BLOCK_BYTES // row - self.rows.reach)
        return -(-self.rows.count // fitting)

    @property
    def band_rows(self) -> int:
        """Values of a (rows) of a band."""
        return -(-self.rows.count // self.bands)

    @cached_property
    def chunk_images(self) -> int:
        """Images of a chunk."""
        if self.bands > 1:
            return 1
        fitting = max(1, min(self.images, BLOCK_BYTES // self._image_bytes))
        return -(-self.images // -(-self.images // fitting))

    @property
    def unit_chunks(self) -> int:
        """Chunks of a unit."""
        return -(-self.images // self.chunk_images) * self.bands

    @property
    def chunks(self) -> int:
        """Chunks of a call."""
        return self.units * self.unit_chunks

    @property
    def chunk_positions(self) -> int:
        """Positions of a chunk, at most."""
        rows = min(self.rows.size, self.band_rows * self.rows.stride)
        return self.chunk_images * rows * self.columns.size

    @property
    def block_rows(self) -> int:
        """Rows of dZ of one image in a block, with the zeros after them."""
        return self.rows.pitch if self.bands == 1 else self.band_rows + self.rows.reach

    @property
    def lead(self) -> int:
        """Pixels of a block before those of ``first_row``."""
        before = self.rows.before if self.bands == 1 else 0
        return before * self.columns.pitch + self.columns.before

    @property
    def block_pixels(self) -> int:
        """Pixels of a block of dZ."""
        return self.lead + self.chunk_images * self.block_rows * self.columns.pitch

    def first_row(self, band):
        """The row oy of dZ that lies first in the block of a band; it may be less than 0."""
        before = self.rows.before if self.bands == 1 else 0
        return self.rows.first + band * self.band_rows - self.rows.reach + before

    # Tasks.

    @cached_property
    def parts(self) -> int:
        """Parts of the chunks; of whole units, where there are several."""
        if self.units > 1:
            return -(-self.units // -(-self.units // min(self.units, TASKS)))
        wanted = min(self.chunks, max(1, TASKS // min(self.blocks, TASKS)))
        return -(-self.chunks // -(-self.chunks // wanted))

    @property
    def part_chunks(self) -> int:
        """Chunks of a part."""
        if self.units > 1:
            return -(-self.units // self.parts) * self.unit_chunks
        return -(-self.chunks // self.parts)

    @cached_property
    def groups(self) -> int:
        """Groups of blocks of channels."""
        wanted = min(self.blocks, max(1, TASKS // self.parts))
        return -(-self.blocks // -(-self.blocks // wanted))

    @property
    def group_blocks(self) -> int:
        """Blocks of a group."""
        return -(-self.blocks // self.groups)

    @property
    def owners(self) -> int:
        """Sums of dC that a group of blocks keeps: one for each unit, or for each part of the only one."""
        return self.units if self.units > 1 else self.parts

    # Shapes of what the kernels hand each other.

    @property
    def starts_shape(self) -> tuple[int, ...]:
        """Of ``member_lists``."""
        return self.chunks, self.segments, len(self.phases) * self.capacity + 1

    @property
    def members_shape(self) -> tuple[int, ...]:
        """Of ``member_lists``."""
        return self.chunks, self.segments, self.chunk_positions

    @property
    def transposed_shape(self) -> tuple[int, ...]:
        """Of the weights, blocks of output channels outside, entries of a vector inside."""
        return self.blocks, self.segments, self.taps * self.channels, self.Lp

    @property
    def weight_sums_shape(self) -> tuple[int, ...]:
        """Of the weight gradient's parts."""
        return self.parts, self.blocks, self.segments, self.taps, self.L, self.channels

    @property
    def centroid_sums_shape(self) -> tuple[int, ...]:
        """Of the parts of the centroids' gradient."""
        return self.groups, self.owners, self.segments, self.capacity, self.Lp

    @property
    def centroids_shape(self) -> tuple[int, ...]:
        """Of the centroids' gradient; the last row is zeros, for positions in no cluster."""
        return self.units, self.segments, self.capacity + 1, self.Lp


def int64(*dims: int) -> tuple[tirx.IntImm, ...]:
    """Dimensions as Relax has them."""
    return tuple(tirx.IntImm("int64", d) for d in dims)
