"""Kernels of CUDA targets, emulated, against the references (``docs/algorithm.md``), in every order of threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from cuda_emulator import ORDERS, emulated_cuda, thread_order
from cuda_harness import CONFIG, TARGET, check_cuda, check_cuda_vectors, dense_of, run_cuda
from kernel_harness import GEOMETRIES, Layer, close, sample_input, sample_tensors

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.reference import conv2d, conv2d_chain
from adr_tvm.schedules.cuda.grouped_conv2d import grouped_conv2d
from adr_tvm.schedules.cuda.implicit_gemm import implicit_gemm, padded_k, padded_m
from adr_tvm.schedules.cuda.thread_tile import TILES, gemm_tile
from adr_tvm.settings import ReuseSetting

EXACT = ReuseSetting("row", L=1, H=1, hash="exact")
RELU = Activation.relu()


def on_device(*arrays):
    return [tvm.runtime.tensor(array, tvm.cuda()) for array in arrays]


def compiled(func):
    with TARGET, tvm.transform.PassContext(config=CONFIG):
        return tvm.compile(func.with_attr("global_symbol", "main"), TARGET)["main"]


@pytest.mark.parametrize(
    ("tile", "geometry"),
    [
        (TILES[0], GEOMETRIES["3x3"]),
        (TILES[1], GEOMETRIES["asymmetric"]),
        (TILES[2], GEOMETRIES["dilation2"]),
        (TILES[3], GEOMETRIES["11x11_stride4"]),
        (TILES[4], ConvGeometry(5, 4, 64, 1, 1, 12)),
    ],
)
def test_every_output_is_one_chain(tile, geometry):
    """Clause 11, in bits, with a residual and without: neither the tile nor the order of threads shows."""
    g, tensors, x = geometry, sample_tensors(Layer(geometry)), sample_input(geometry, 2)
    w = np.pad(tensors.w.reshape(g.K, g.M), ((0, padded_k(g, tile) - g.K), (0, padded_m(g, tile) - g.M)))
    bias = np.pad(tensors.bias, (0, padded_m(g, tile) - g.M))
    residual = np.random.default_rng(0).standard_normal((2, g.OH, g.OW, g.M)).astype(np.float32)
    linear = conv2d_chain(x, tensors.w, tensors.bias, g)
    with emulated_cuda():
        for added in ([], [residual]) if tile is TILES[3] else ([residual],):
            run = compiled(implicit_gemm(g, RELU, tile, bool(added)))
            for order in ORDERS:
                *given, y = on_device(x, w, bias, *added, np.full_like(residual, np.nan))
                with thread_order(order):
                    run(*given, y)
                np.testing.assert_array_equal(y.numpy(), np.maximum(linear + sum(added), 0))


@pytest.mark.parametrize(("groups", "C", "M"), [(8, 1, 1), (3, 4, 2)])
def test_grouped(groups, C, M):
    g = ConvGeometry(9, 7, C, 3, 3, M, strides=(2, 1), padding=(1, 1, 0, 2))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, g.H, g.W, groups * C)).astype(np.float32)
    w = rng.standard_normal((3, 3, C, groups * M)).astype(np.float32)
    bias = rng.standard_normal(groups * M).astype(np.float32)
    parts = [
        conv2d(x[..., i * C : (i + 1) * C], w[..., i * M : (i + 1) * M], bias[i * M : (i + 1) * M], g, RELU)
        for i in range(groups)
    ]
    with emulated_cuda():
        *given, y = on_device(x, w, bias, np.full((2, g.OH, g.OW, groups * M), np.nan, np.float32))
        compiled(grouped_conv2d(g, groups, RELU))(*given, y)
    close(y.numpy(), np.concatenate(parts, axis=-1))


@pytest.mark.parametrize(
    ("geometry", "setting"),
    [
        (GEOMETRIES["1x1"], EXACT),
        (GEOMETRIES["wide_padding"], dataclasses.replace(EXACT, scope="batch")),
        (GEOMETRIES["3x3"], ReuseSetting("row", H=5, hash="pca")),
        (GEOMETRIES["1x1"], ReuseSetting("row", H=9, hash="gaussian", scope="batch")),
        (GEOMETRIES["5x5_stride2"], ReuseSetting("row", H=17, hash="learned")),
    ],
    ids=str,
)
def test_rows(geometry, setting):
    """Clauses 2 to 8, 10 and 13; all-zero rows and rows that are not finite among them."""
    layer = Layer(geometry, setting)
    tensors, x = sample_tensors(layer), sample_input(geometry, 3)
    x[1, :2, :2] = 0
    x[2, 0, 0, 0], x[2, -1, -1, -1] = np.nan, np.inf
    first = check_cuda(layer, tensors, x)
    for order in ORDERS[1:]:
        again = check_cuda(layer, tensors, x, order)
        assert again.y.tobytes() == first.y.tobytes(), "the same bytes in every run"
        np.testing.assert_array_equal(again.stats, first.stats)
    if setting.lossless:
        assert first.stats[:, 0].sum() < 3 * geometry.rows, "rows repeat in this input"
        dense = run_cuda(dense_of(layer), tensors, x)
        assert dense.y.tobytes() == first.y.tobytes(), "lossless: the bits of the dense layer"


def test_a_unit_with_too_many_clusters_runs_dense():
    setting = ReuseSetting("row", H=4, hash="pca", max_clusters=4)
    layer = Layer(dense_geometry(24, 16, 10), setting, rank=3)
    tensors, x = sample_tensors(layer), sample_input(layer.geometry, 2)
    x[0] = x[0, 0]  # one cluster
    result = check_cuda(layer, tensors, x)
    assert result.stats[:, 1].tolist() == [1, 0]
    dense = run_cuda(dense_of(layer), tensors, x)
    np.testing.assert_array_equal(result.y[1], dense.y[1])


def test_more_rows_than_a_block_lists():
    """Prefix sums over several blocks of rows, clusters with members far apart."""
    setting = ReuseSetting("row", H=6, hash="pca", scope="batch")
    layer = Layer(dense_geometry(1300, 4, 3), setting, rank=3, batch=2)
    tensors, x = sample_tensors(layer), sample_input(layer.geometry, 2)
    check_cuda(layer, tensors, x, ORDERS[2])


@pytest.mark.parametrize(
    ("geometry", "setting", "limits"),
    [
        ("3x3", ReuseSetting("pixel", L=8, H=5, max_clusters=36), {"product_table.TABLE_BYTES": 1}),
        ("wide_padding", ReuseSetting("segment", L=3, H=6, hash="gaussian", scope="batch", gain=True), {}),
        ("stride_over_kernel", ReuseSetting("pixel", L=4, hash="exact"), {"reuse_schedule.BLOCK_CLUSTERS": 8}),
        ("asymmetric", ReuseSetting("pixel", L=2, H=7, table="bfloat16"), {"reuse_schedule.BLOCK_CLUSTERS": 8}),
    ],
    ids=["pixel", "segment", "exact", "bfloat16"],
)
def test_vectors(geometry, setting, limits, monkeypatch):
    """Clauses 2 to 10, 12 and 13: rounds of one segment, units that run dense, clusters that no table holds."""
    for name, value in limits.items():
        module, _, attribute = name.partition(".")
        package = "adr_tvm.schedules.cuda" if module == "product_table" else "adr_tvm.schedules"
        monkeypatch.setattr(f"{package}.{module}.{attribute}", value)
    layer = Layer(GEOMETRIES[geometry], setting)
    tensors, x = sample_tensors(layer), sample_input(layer.geometry, 3)
    x[1, :2, :2] = 0
    x[0, 0, 0, 0], x[0, -1, -1, -1] = np.nan, np.inf
    first = check_cuda_vectors(layer, tensors, x)
    for order in ORDERS[1:]:
        again = check_cuda_vectors(layer, tensors, x, order)
        assert again.y.tobytes() == first.y.tobytes(), "the same bytes in every run"
    if setting.max_clusters is not None:
        assert sorted(first.stats[:, 1]) == [0, 1, 1]
        dense = run_cuda(dense_of(layer), tensors, x)
        unit = int(np.argmin(first.stats[:, 1]))
        np.testing.assert_array_equal(first.y[unit], dense.y[unit])


def test_more_vectors_than_a_block_numbers():
    """Prefix sums over several blocks; a bfloat16 table where channels do not come in fours."""
    setting = ReuseSetting("pixel", L=12, H=11, hash="gaussian", scope="batch", gain=True, table="bfloat16")
    layer = Layer(dense_geometry(700, 24, 10), setting, rank=3)
    tensors, x = sample_tensors(layer), sample_input(layer.geometry, 3)
    check_cuda_vectors(layer, tensors, x, ORDERS[2])


def test_integer_tables_are_refused():
    layer = Layer(GEOMETRIES["3x3"], ReuseSetting("pixel", L=8, H=4, table="int8"))
    with pytest.raises(ValueError, match="layer: table=int8 has no kernels for CUDA"):
        run_cuda(layer, sample_tensors(layer), sample_input(layer.geometry, 1))


def test_tiles_follow_the_size_of_the_product():
    assert gemm_tile(32 * 56 * 56, 256) == TILES[0]
    assert gemm_tile(1, 4096).BM == 16
    assert all(tile.threads % 32 == 0 and tile.threads <= 256 for tile in TILES)
