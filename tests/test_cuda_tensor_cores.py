"""Products on tensor cores, emulated, against NumPy in each data type: dense layers, and rows that reuse."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import tvm
from cuda_emulator import ORDERS, emulated_cuda, old_copies, thread_order
from cuda_harness import CONFIG, TARGETS_OF, dense_of, ids_of, run_cuda
from kernel_harness import GEOMETRIES, Layer, close, sample_input, sample_tensors

from adr_tvm.activation import Activation
from adr_tvm.build import code_objects_of
from adr_tvm.cuda import code_objects
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.precision import PRECISIONS
from adr_tvm.reference import conv2d, reuse_conv2d, reuse_conv2d_given_ids, rounding_band, same_ids
from adr_tvm.schedules.cuda.tensor_gemm import packed_channel, padded_k, padded_m, tensor_gemm, tensor_gemm_of_rows
from adr_tvm.schedules.cuda.tensor_tile import TILES, tensor_tile
from adr_tvm.schedules.cuda.unit_gather import UnitRows
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS, with_architectures

EXACT = ReuseSetting("row", L=1, H=1, hash="exact")
RELU = Activation.relu()
# Of results beside the largest: one rounding to the storage type (tf32: of sums only), with room for fp32 sums.
ROUNDING = {"fp16": 2.0**-10, "bf16": 2.0**-7, "tf32": 1e-5}


def as_factors(name, array):
    """What tensor cores make of an array, in fp32."""
    return PRECISIONS[name].rounded(array).astype(np.float32)


def test_rounding():
    values = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, 1e30, np.inf, np.nan], np.float32)
    up, half = 2.0**-10, 2.0**-11
    tf32 = PRECISIONS["tf32"].rounded(values)
    np.testing.assert_array_equal(tf32[:3], [1 + up, 1 + 2 * up, -1 - up])  # ties away from zero
    assert abs(tf32[3] / 1e30 - 1) <= half and np.isinf(tf32[4]) and np.isnan(tf32[5])
    fp16 = PRECISIONS["fp16"].rounded(values)
    np.testing.assert_array_equal(fp16[:3].astype(np.float32), [1, 1 + 2 * up, -1])  # ties to even
    assert fp16.dtype == np.float16 and np.isinf(fp16[3])
    assert str(PRECISIONS["bf16"].rounded(values).dtype) == "bfloat16"


@pytest.mark.parametrize(
    ("name", "tile", "geometry"),
    [
        ("fp16", TILES[5], GEOMETRIES["3x3"]),
        ("fp16", TILES[0], GEOMETRIES["5x5_stride2"]),
        ("bf16", TILES[4], GEOMETRIES["asymmetric"]),
        ("bf16", TILES[2], ConvGeometry(9, 8, 16, 3, 3, 40, padding=(2, 1, 2, 3), dilation=(2, 2))),
        ("tf32", TILES[1], GEOMETRIES["1x1_stride2"]),
    ],
)
def test_dense(name, tile, geometry):
    """Whole units and single entries, tails of rows, K and M; with a residual; the same bytes in every order."""
    g, precision, tensors = geometry, PRECISIONS[name], sample_tensors(Layer(geometry))
    x, residual = sample_input(g, 2), np.random.default_rng(0).standard_normal((2, g.OH, g.OW, g.M))
    x, residual = (each.astype(np.float32).astype(precision.storage) for each in (x, residual))
    w, Mp = precision.rounded(tensors.w).reshape(g.K, g.M), padded_m(g, tile)
    padded = np.pad(w.T, ((0, Mp - g.M), (0, padded_k(g, tile, precision) - g.K)))
    packed = padded[[packed_channel(m) for m in range(Mp)]]
    linear = conv2d(as_factors(name, x), as_factors(name, tensors.w), tensors.bias, g)
    expected = np.maximum(linear + residual.astype(np.float32), 0)
    found = []
    with emulated_cuda() as sources, TARGETS_OF[name], tvm.transform.PassContext(config=CONFIG):
        kernel = tensor_gemm(g, RELU, tile, precision, residual=True).with_attr("global_symbol", "main")
        run = tvm.compile(kernel, TARGETS_OF[name])["main"]
        for order in ORDERS:
            arrays = (x, packed, np.pad(tensors.bias, (0, Mp - g.M)), residual, np.full_like(residual, np.nan))
            *given, y = (tvm.runtime.tensor(array, tvm.cuda()) for array in arrays)
            with thread_order(order), old_copies() if name == "fp16" and order == 0 else nullcontext():
                run(*given, y)
            found.append(y.numpy())
    close(found[0].astype(np.float32), expected, ROUNDING[name])
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    assert sources[0].count("__syncthreads") == 1, "TVM adds no barrier"


@pytest.mark.parametrize(
    ("name", "geometry", "setting"),
    [
        ("fp16", ConvGeometry(7, 6, 8, 3, 3, 10, padding=(1, 1, 1, 1)), ReuseSetting("row", H=5, hash="pca")),
        ("bf16", GEOMETRIES["wide_padding"], EXACT),
        ("tf32", GEOMETRIES["5x5_stride2"], ReuseSetting("row", H=6, hash="pca", scope="batch")),
    ],
    ids=str,
)
def test_rows(name, geometry, setting):
    """Clauses 2 to 8, 10 and 13, of rounded data; keys and means are fp32, of what is stored."""
    layer = Layer(geometry, setting)
    tensors, x = sample_tensors(layer), sample_input(geometry, 3)
    x[1, :2, :2] = 0
    x[2, 0, 0, 0], x[2, -1, -1, -1] = np.nan, np.inf
    stored = x.astype(PRECISIONS[name].storage).astype(np.float32)
    first = run_cuda(layer, tensors, x, dtype=name)
    assert run_cuda(layer, tensors, x, ORDERS[2], name).y.tobytes() == first.y.tobytes()
    w = as_factors(name, tensors.w)
    arguments = (as_factors(name, x), w, tensors.bias, geometry, setting)
    ids = ids_of(layer, stored, first)
    hashed = (stored, *arguments[1:], tensors.planes, tensors.thresholds)
    expected = reuse_conv2d(*hashed)
    if setting.lossless:
        np.testing.assert_array_equal(ids, expected.ids)
        assert first.stats[:, 0].sum() < 3 * geometry.rows, "rows repeat in this input"
        dense = run_cuda(dense_of(layer), tensors, x, dtype=name)
        assert dense.y.tobytes() == first.y.tobytes(), "lossless: the bits of the dense layer"
    else:
        band = rounding_band(stored, geometry, setting, tensors.planes, tensors.mu, tensors.thresholds)
        assert same_ids(expected.ids, ids, band, setting)
    given = reuse_conv2d_given_ids(*arguments, ids)
    np.testing.assert_array_equal(first.stats, np.stack([given.clusters.sum(axis=1), given.reused], axis=1))
    # Means are rounded too, after they were made of data that are not (tf32).
    close(first.y, given.y, (1 if setting.lossless else 2) * max(ROUNDING[name], 0 if setting.lossless else 2.0**-10))


def test_units_lie_in_different_banks():
    """Eight rows of a fragment, and eight copies of a warp's quarter, take all 32 banks."""
    for UK in (4, 8):
        rows = UnitRows(64, UK, 64)
        for first in range(0, 64, 8):
            for unit in range(UK):
                assert len({rows.word(first + i, unit) // 4 % 8 for i in range(8)}) == 8
            assert len({rows.own_word(first + i, 0) // 4 % 8 for i in range(8)}) == 8
        assert len({rows.word(r, u) for r in range(64) for u in range(UK)}) == 64 * UK


def test_tiles():
    assert tensor_tile(32 * 56 * 56, 256) == TILES[0]
    assert tensor_tile(1, 4096).BM == 16
    assert tensor_tile(32 * 56 * 56, 32).BN == 32
    assert all(tile.shared_bytes <= 48 << 10 and tile.threads <= 256 and tile.stages in (3, 4) for tile in TILES)


@pytest.mark.skipif(not code_objects.has_compiler(), reason="no NVRTC and no nvcc")
@pytest.mark.parametrize(
    ("name", "architectures", "channels"),
    [("fp16", "sm_75,sm_80,sm_90", 64), ("bf16", "sm_80,sm_90", 3), ("tf32", "sm_80,sm_90", 64)],
)
def test_machine_code(name, architectures, channels):
    """Products of all rows and of lists; nothing spills."""
    entry, precision = with_architectures(TARGETS["cuda"], architectures), PRECISIONS[name]
    g = ConvGeometry(28, 28, channels, 3, 3, 128, padding=(1, 1, 1, 1))
    kernels = {
        "dense": tensor_gemm(g, RELU, TILES[1], precision, residual=True),
        "signs": tensor_gemm_of_rows(g, RELU, TILES[0], precision, ReuseSetting("row", H=8)),
    }
    module = tvm.IRModule({key: kernel.with_attr("global_symbol", key) for key, kernel in kernels.items()})
    target = entry.make(None)
    with code_objects_of(entry) as used, target, tvm.transform.PassContext(config=CONFIG):
        tvm.compile(module, target)
    found = {(r.kernel.removesuffix("_kernel"), r.architecture) for r in used}
    assert found == {(key, each) for key in kernels for each in architectures.split(",")}
    assert all(r.spills == r.stack == 0 and r.shared <= 48 << 10 for r in used), used


def test_a_dense_layer():
    """Rows [batch, K], one tile of few rows; through the lowering of the operator."""
    layer = Layer(dense_geometry(1, 72, 37), None, RELU, rank=2)
    tensors, x = sample_tensors(layer), sample_input(layer.geometry, 5)
    expected = conv2d(as_factors("fp16", x), as_factors("fp16", tensors.w), tensors.bias, layer.geometry, RELU)
    close(run_cuda(layer, tensors, x, dtype="fp16").y, expected, ROUNDING["fp16"])
