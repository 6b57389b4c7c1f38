"""How the gradient of a convolution's weights is cut up: the order of its sums, by shape alone, and all else."""

from __future__ import annotations

from dataclasses import dataclass

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.register_tile import IN_FLIGHT, LOAD, MAX_VECTORS, Isa, RegisterTile

FEW_CHANNELS = 8  # up to so many, rows of the GEMM run over (kx, c)
ROW_PIXELS = 512  # of a row that a 1x1 convolution is cut into, at most
TASKS = 8  # parts and groups that threads share, about
PART_BYTES = 8 << 20  # of the sums of all parts
PART_PIXELS = 1024  # of a part, at least
CHUNK_PIXELS = 256  # a chunk and its part of dW stay in L2
BAND_PIXELS = 1024  # of few channels; more rows of a band, fewer that two bands read
GROUP = 128  # channels of a task
LONG_GROUP = 1024  # output channels where all pixels are one chunk: dW is written in long runs
STREAM = 5.0  # multiply-adds in the time that a vector of dz takes from L2


@dataclass(frozen=True)
class WeightGradientSchedule:
    """The parameters of ``weight_gradient``.

    Attributes:
        tile: accumulators, MR rows by NR output channels; neither is more than there are.
        pixels: of a chunk, about.
        tiles, blocks: of a task.
        pack_x, pack_dz: whether the chunk is copied, tile by tile; else it is read where it is.
    """

    tile: RegisterTile
    pixels: int
    tiles: int
    blocks: int
    pack_x: bool = False
    pack_dz: bool = False

    def __post_init__(self) -> None:
        if min(self.pixels, self.tiles, self.blocks) < 1:
            raise ValueError(f"{self}: numbers from 1 on are expected")


@dataclass(frozen=True)
class Layout:
    """The sum as loops: a convolution, or one whose pixels are regrouped, or whose columns of taps are one tap.

    Attributes:
        batch, H, W, C, OH, OW, M: of images.
        KH, KX: taps, each with ``rows`` rows of the GEMM; the K of the convolution is (KH, KX, rows).
        SH, SW, DH, DW, PT, PL: strides, dilations, padding.
        padded: whether rows run over (kx, c) of an image whose rows are padded to ``padded_width`` columns.
    """

    batch: int
    H: int
    W: int
    C: int
    OH: int
    OW: int
    M: int
    KH: int
    KX: int
    rows: int
    SH: int
    SW: int
    DH: int
    DW: int
    PT: int
    PL: int
    padded: bool
    padded_width: int


@dataclass(frozen=True)
class Parts:
    """What is summed as one chain: so many images and rows of them; ``bands`` parts to an image, ``count`` in all."""

    count: int
    images: int
    rows: int
    bands: int


def layout_of(geometry: ConvGeometry, batch: int) -> Layout:
    """The loops of a geometry."""
    g = geometry
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    if (g.KH, g.KW, SH, SW, *g.padding) == (1, 1, 1, 1, 0, 0, 0, 0):
        pixels = batch * g.H * g.W
        W = max(n for n in range(1, min(pixels, ROW_PIXELS) + 1) if pixels % n == 0)
        return Layout(1, pixels // W, W, g.C, pixels // W, W, g.M, 1, 1, g.C, 1, 1, 1, 1, 0, 0, False, W)
    sizes = (batch, g.H, g.W, g.C, g.OH, g.OW, g.M)
    if g.C <= FEW_CHANNELS and g.KW > 1 and DW == 1:
        width = max(PL + g.W, (g.OW - 1) * SW + g.KW)
        return Layout(*sizes, g.KH, 1, g.KW * g.C, SH, SW, DH, DW, PT, PL, True, width)
    return Layout(*sizes, g.KH, g.KW, g.C, SH, SW, DH, DW, PT, PL, False, g.W)


def parts_of(geometry: ConvGeometry, batch: int) -> Parts:
    """The parts of a geometry."""
    lay = layout_of(geometry, batch)
    pixels = lay.batch * lay.OH * lay.OW
    most = max(1, min(TASKS, PART_BYTES // (4 * geometry.K * geometry.M), pixels // PART_PIXELS))
    if lay.batch > 1:
        images = -(-lay.batch // min(most, lay.batch))
        return Parts(-(-lay.batch // images), images, lay.OH, 1)
    rows = -(-lay.OH // min(most, lay.OH))
    bands = -(-lay.OH // rows)
    return Parts(bands, 1, rows, bands)


def default_weight_gradient_schedule(isa: Isa, geometry: ConvGeometry, batch: int) -> WeightGradientSchedule:
    """A good schedule without any measurement."""
    lay = layout_of(geometry, batch)
    tile = weight_gradient_tile(isa, lay.rows, lay.M)
    few = lay.batch * lay.OH * lay.OW <= CHUNK_PIXELS
    outputs = LONG_GROUP if few else GROUP
    pixels = BAND_PIXELS if lay.padded else CHUNK_PIXELS
    return WeightGradientSchedule(
        tile, pixels, max(1, GROUP // tile.MR), max(1, outputs // tile.NR), pack_dz=not few and lay.M > tile.NR
    )


def weight_gradient_tile(isa: Isa, rows: int, M: int) -> RegisterTile:
    """The tile that takes least time; its vectors are narrower than the processor's where M is."""

    def cost(tile: RegisterTile) -> tuple[float, int]:
        return -(-rows // tile.MR) * -(-M // tile.NR) * step_cost(tile), -tile.MR * tile.NR

    return min(weight_gradient_tiles(isa, rows, M, vector_lanes(isa, M)), key=cost)


def vector_lanes(isa: Isa, M: int) -> int:
    """Of the vectors of M channels: a power of two, no more than there are channels."""
    return min(isa.lanes, 1 << (M.bit_length() - 1))


def weight_gradient_tiles(isa: Isa, rows: int, M: int, lanes: int) -> list[RegisterTile]:
    """Tiles that fit the registers and are no larger than the gradient."""
    return [
        RegisterTile(MR, vectors * lanes, lanes)
        for vectors in range(1, MAX_VECTORS + 1)
        for MR in range(1, (isa.registers - vectors - 1) // vectors + 1)
        if rows >= MR and vectors * lanes <= M
    ]


def step_cost(tile: RegisterTile) -> float:
    """Of one pixel, in vector multiply-adds: their number, or what they wait for."""
    vectors, loads = tile.vectors, tile.MR + tile.vectors
    return max(tile.MR * vectors, loads, IN_FLIGHT, STREAM * vectors) + LOAD * loads
