"""The reuse kernels against the reference, clause by clause of ``docs/algorithm.md``."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from kernel_harness import (
    GEOMETRIES,
    HAS_FMA,
    Layer,
    Tensors,
    check,
    close,
    kernel_ids,
    run,
    run_vm,
    sample_input,
    sample_tensors,
)
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.reference import conv2d, reuse_conv2d
from adr_tvm.schedules import cluster as cluster_module
from adr_tvm.schedules import match_rows as match_rows_module
from adr_tvm.schedules.register_tile import AVX2, AVX512, NEON, SSE, RegisterTile, gemm_tile
from adr_tvm.schedules.reuse_schedule import BLOCK_CLUSTERS, ReuseSchedule, table_clusters
from adr_tvm.settings import GRANULARITIES, HASH_FAMILIES, SCOPES, TABLES, ReuseSetting

KINDS = [(g, h) for g in GRANULARITIES for h in ("gaussian", "exact")]
LOSSLESS = ReuseSetting("row", hash="exact")
# One geometry and setting for most clauses, so that its kernels are compiled once: asymmetric padding, strides, short
# last segments (L = 4 of C = 5 or K = 30), output channels that fill no register tile.
BASE = GEOMETRIES["asymmetric"]


def _setting(granularity, family="gaussian", scope="image", gain=False):
    return ReuseSetting(granularity, 4, 6, family, scope, gain)


ALL_SETTINGS = [
    _setting(granularity, family, scope, gain)
    for granularity in GRANULARITIES
    for family in HASH_FAMILIES
    for scope in SCOPES
    for gain in (False, True)
    if not (gain and (family == "exact" or granularity == "row"))
]


def _name(setting):
    return "-".join([setting.granularity, setting.hash, setting.scope, "gain" if setting.gain else "plain"])


def _dense(layer, tensors, x):
    return run(replace(layer, setting=None), tensors, x).y


@pytest.mark.parametrize("setting", ALL_SETTINGS, ids=_name)
def test_every_setting(setting):
    layer = Layer(BASE, setting)
    tensors = sample_tensors(layer)
    for batch, zeros in ((1, 0.25), (3, 0.95), (7, 0.5)):
        _, expected = check(layer, tensors, sample_input(BASE, batch, zeros=zeros))
        assert expected.reused.all()


@pytest.mark.parametrize("table", sorted(set(TABLES) - {"float32"}))
@pytest.mark.parametrize("granularity", ["pixel", "segment"])
def test_clause_15_tables(granularity, table):
    layer = Layer(BASE, replace(_setting(granularity, gain=table == "bfloat16"), table=table))
    tensors, x = sample_tensors(layer), sample_input(BASE, 3)
    result, expected = check(layer, tensors, x)
    plain = run(replace(layer, setting=_setting(granularity, gain=table == "bfloat16")), tensors, x).y
    worst = {"bfloat16": 2e-2, "int16": 2e-3, "int8": 5e-2}[table] * np.abs(plain).max()
    assert 0 < np.abs(result.y - plain).max() < worst
    assert (expected.slack > 0).mean() < 0.2
    x[0, 2, 3, 1], x[1, 0, 0, 0] = np.nan, np.inf
    check(layer, tensors, x)
    check(layer, tensors, np.zeros_like(x))


@pytest.mark.parametrize("table", ["int16", "int8"])
def test_clause_15_sums_of_the_largest_products_do_not_overflow(table):
    geometry = ConvGeometry(6, 6, 33, 5, 5, 32)
    layer = Layer(geometry, ReuseSetting("pixel", 3, 4, "gaussian", table=table))
    tensors = sample_tensors(layer)
    tensors = replace(tensors, w=np.full_like(tensors.w, 0.1), bias=np.zeros_like(tensors.bias))
    for sign in (1, -1):  # every product is the largest there can be, and all add up
        result, _ = check(layer, tensors, np.full((2, 6, 6, 33), sign * 2.0, np.float32))
        np.testing.assert_allclose(result.y, sign * 0.2 * geometry.K, rtol=1e-5)


def test_clause_15_too_many_taps_for_int8():
    geometry = ConvGeometry(20, 19, 2, 17, 17, 3)
    layer = Layer(geometry, ReuseSetting("pixel", 2, 4, "gaussian", table="int8"))
    tensors, x = sample_tensors(layer), sample_input(geometry, 1)
    result, _ = check(layer, tensors, x)
    plain = run(replace(layer, setting=replace(layer.setting, table="float32")), tensors, x)
    np.testing.assert_array_equal(result.y, plain.y)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("channels", "together", "columns", "bands"), [(32, 1, 1, 1), (64, 2, 3, 2), (32, 3, 4, 9), (64, 5, 8, 3)]
)
def test_schedules_agree(table, channels, together, columns, bands):
    geometry = ConvGeometry(9, 7 + columns, 20, 3, 3, 70, padding=(1, 1, 1, 1))
    layer = Layer(geometry, ReuseSetting("pixel", 4, 5, "gaussian", table=table))
    schedule = ReuseSchedule(channels, together, columns, bands)
    with mock.patch("adr_tvm.passes.lowering.reuse_schedule", return_value=schedule):
        check(layer, sample_tensors(layer, seed=channels + together), sample_input(geometry, 2))


def test_wrong_results_are_noticed():
    layer = Layer(BASE, _setting("pixel"))
    tensors, x = sample_tensors(layer), sample_input(BASE, 2)
    w = tensors.w.copy()
    w[2, 1, 4, 11] += 1e-3
    run(layer, tensors, x)
    with pytest.raises(AssertionError):
        check(layer, tensors, x, lambda *_: run(layer, replace(tensors, w=w), x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", sorted(set(GEOMETRIES) - {"asymmetric"}))
def test_geometries(name, granularity):
    geometry = GEOMETRIES[name]
    layer = Layer(geometry, ReuseSetting(granularity, 7, 4, "gaussian", SCOPES[len(name) % 2]))
    check(layer, sample_tensors(layer), sample_input(geometry, 2))


@pytest.mark.parametrize("granularity", ["pixel", "segment"])
@pytest.mark.parametrize("name", ["asymmetric", "1x1_stride2", "5x5_stride2", "wide_padding"])
def test_exact_gives_dense(name, granularity):
    geometry = GEOMETRIES[name]
    layer = Layer(geometry, ReuseSetting(granularity, 4, 6, "exact"))
    tensors, x = sample_tensors(layer), sample_input(geometry, 2)
    result, _ = check(layer, tensors, x)
    close(result.y, conv2d(x, tensors.w, tensors.bias, geometry))


@pytest.mark.parametrize(
    ("granularity", "L", "family"),
    [
        ("pixel", 1, "pca"),
        ("pixel", 100, "pca"),
        ("segment", 1, "pca"),
        ("segment", 33, "pca"),
        ("segment", 999, "pca"),
        ("pixel", 19, "exact"),
        ("segment", 33, "exact"),
    ],
)
def test_vector_lengths(granularity, L, family):
    geometry = ConvGeometry(5, 4, 20, 2, 2, 3, padding=(0, 1, 0, 1))
    layer = Layer(geometry, ReuseSetting(granularity, L, 3, family, gain=family == "pca"))
    check(layer, sample_tensors(layer), sample_input(geometry, 2))


@pytest.mark.parametrize("H", [1, 9, 20])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bits(granularity, H):
    layer = Layer(GEOMETRIES["1x1"], ReuseSetting(granularity, 8, H, "gaussian", scope="batch"))
    check(layer, sample_tensors(layer), sample_input(layer.geometry, 7))


@pytest.mark.parametrize("activation", [Activation.relu6(), Activation("leaky_relu", slope=0.1)], ids=lambda a: a.kind)
@pytest.mark.parametrize(("granularity", "family"), KINDS)
def test_activations(granularity, family, activation):
    layer = Layer(BASE, _setting(granularity, family), activation)
    check(layer, sample_tensors(layer), sample_input(BASE, 2, zeros=0.7))


@pytest.mark.skipif(not HAS_FMA, reason="without FMA the bits may differ in the rounding band")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_clause_2_ids_bit_by_bit(granularity):
    layer = Layer(BASE, _setting(granularity, scope="batch"))
    tensors, x = sample_tensors(layer), sample_input(BASE, 40, zeros=0)
    expected = reuse_conv2d(
        x, tensors.w, tensors.bias, layer.geometry, layer.setting, tensors.planes, tensors.thresholds
    )
    np.testing.assert_array_equal(kernel_ids(layer, x, run(layer, tensors, x)), expected.ids)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_clause_2_ties_are_zero(granularity):
    # Integers: every sum is exact, and many meet their threshold exactly.
    layer = Layer(BASE, _setting(granularity, "learned"))
    tensors, rng = sample_tensors(layer), np.random.default_rng(5)
    tensors = replace(
        tensors,
        planes=rng.integers(-1, 2, tensors.planes.shape).astype(np.float32),
        thresholds=rng.integers(-1, 2, tensors.thresholds.shape).astype(np.float32),
    )
    x = rng.integers(-1, 2, (2, 6, 9, 5)).astype(np.float32)
    expected = reuse_conv2d(
        x, tensors.w, tensors.bias, layer.geometry, layer.setting, tensors.planes, tensors.thresholds
    )
    result = run(layer, tensors, x)
    np.testing.assert_array_equal(kernel_ids(layer, x, result), expected.ids)
    close(result.y, expected.y)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_clause_2_infinite_thresholds_switch_bits_off(granularity):
    setting, bits = replace(_setting(granularity), H=9), 5
    layer, fewer = Layer(BASE, setting), Layer(BASE, replace(setting, H=bits))
    tensors, x = sample_tensors(layer), sample_input(BASE, 2)
    thresholds = tensors.thresholds.copy()
    thresholds[:, bits:] = np.inf
    switched, _ = check(layer, replace(tensors, thresholds=thresholds), x)
    planes = tensors.planes[..., :bits].copy(), tensors.thresholds[:, :bits].copy()
    compiled = run(fewer, Tensors(tensors.w, tensors.bias, *planes), x)
    np.testing.assert_array_equal(switched.y, compiled.y)
    np.testing.assert_array_equal(switched.stats, compiled.stats)


def test_clause_3_pixels_that_no_tap_reads():
    geometry = GEOMETRIES["stride_over_kernel"]
    assert (geometry.read_rows, geometry.read_cols) == ((0, 1, 3, 4, 6, 7, 9, 10), (0, 1, 3, 4, 5))
    unread = np.ones((geometry.H, geometry.W), bool)
    unread[np.ix_(geometry.read_rows, geometry.read_cols)] = False
    for family in ("gaussian", "exact"):
        layer = Layer(geometry, ReuseSetting("pixel", 7, 4, family))
        tensors, x = sample_tensors(layer), sample_input(geometry, 2)
        expected, _ = check(layer, tensors, x)
        x[:, unread] = np.nan
        found = run(layer, tensors, x)
        np.testing.assert_array_equal(found.y, expected.y)
        np.testing.assert_array_equal(found.stats, expected.stats)


@pytest.mark.parametrize(("granularity", "family"), KINDS)
def test_clause_4_zeros(granularity, family):
    layer = Layer(BASE, _setting(granularity, family))
    tensors = sample_tensors(layer)
    x = np.zeros((2, 6, 9, 5), np.float32)
    result, _ = check(layer, tensors, x)
    np.testing.assert_array_equal(result.y, np.broadcast_to(tensors.bias, result.y.shape))
    x[:, ::2, 1:, 1:3] = -0.0
    result, _ = check(layer, tensors, x)
    np.testing.assert_array_equal(result.y, np.broadcast_to(tensors.bias, result.y.shape))
    x[1, 1:4, 2:5] = 1e-42  # not zero, though small
    check(layer, tensors, x)


def _marked(layer, x):
    """Planes whose bit 0 is 1 for the vectors that hold an entry of 1e6, and x with such a pixel in two images."""
    tensors = sample_tensors(layer)
    if tensors.planes is not None:
        planes, thresholds = tensors.planes.copy(), tensors.thresholds.copy()
        planes[..., 0], thresholds[..., 0] = 1, 1e5
        tensors = replace(tensors, planes=planes, thresholds=thresholds)
    marked = x.copy()
    marked[0, 3, 3], marked[1, 0, 5] = 1e6, 1e6
    return tensors, marked


@pytest.mark.parametrize(
    "setting",
    [_setting(g, h, SCOPES[i % 2]) for i, (g, h) in enumerate(KINDS)]
    + [_setting(g, "gaussian", SCOPES[i], gain=True) for i, g in enumerate(("pixel", "segment"))],
    ids=_name,
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_clause_5_non_finite_vectors_are_alone(setting, value):
    layer = Layer(BASE, setting)
    x = sample_input(BASE, 3, zeros=0.9)
    tensors, marked = _marked(layer, x)
    spoilt = x.copy()
    spoilt[0, 3, 3], spoilt[1, 0, 5, 4] = value, value
    marked[1, 0, 5] = np.where(np.isfinite(spoilt[1, 0, 5]), x[1, 0, 5], 1e6)
    # The vectors that hold 1e6 are in no cluster with others, so nothing else may differ between the two.
    expected, _ = check(layer, tensors, marked)
    with np.errstate(invalid="ignore"):
        found, _ = check(layer, tensors, spoilt)
        reads = ~np.isfinite(conv2d(spoilt, tensors.w, tensors.bias, BASE))
    assert 0 < reads.sum() < reads.size / 2
    np.testing.assert_array_equal(~np.isfinite(found.y), reads)
    np.testing.assert_array_equal(found.y[~reads], expected.y[~reads])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_clause_5_nothing_but_non_finite_vectors(granularity):
    layer = Layer(BASE, _setting(granularity, scope="batch"))
    tensors, x = sample_tensors(layer), np.full((2, 6, 9, 5), np.nan, np.float32)
    reads = np.isnan(conv2d(x, tensors.w, tensors.bias, BASE))
    assert 0 < reads.sum() < reads.size
    np.testing.assert_array_equal(np.isnan(run(layer, tensors, x).y), reads)


WEAK_HASH = Activation("clip", high=1e6)  # keeps layers whose hash is patched apart from all others


@pytest.mark.parametrize("granularity", ["pixel", "segment"])
def test_clause_8_exact_looks_at_the_data_when_hashes_collide(granularity):
    layer = Layer(BASE, _setting(granularity, "exact"), WEAK_HASH)
    with (
        mock.patch("adr_tvm.schedules.vector_key.mix", lambda word, index: word & T.int64(3)),
        mock.patch("adr_tvm.passes.lowering.cluster", cluster_module.cluster.__wrapped__),
    ):
        check(layer, sample_tensors(layer), sample_input(BASE, 3))


@pytest.mark.parametrize(("C", "kernel"), [(3, 1), (1, 3), (9, 2)])
def test_clause_8_row_looks_at_the_data_when_hashes_collide(C, kernel):
    layer = Layer(ConvGeometry(9, 9, C, kernel, kernel, 5), LOSSLESS, WEAK_HASH)
    x = np.zeros((1, 9, 9, C), np.float32)
    x[0, 2, 3], x[0, 4, 1], x[0, 5, 5] = 1, 2, 1
    with (
        mock.patch("adr_tvm.schedules.number_windows.absorb", lambda hashed, word: hashed & T.int64(1)),
        mock.patch("adr_tvm.passes.carried_ids.match_rows", match_rows_module.match_rows.__wrapped__),
    ):
        result, _ = check(layer, sample_tensors(layer), x)
    assert result.stats[0, 1] == 1


def test_clause_8_padding_equals_zeros():
    # Blank images: every window holds only zeros, some of them padding.
    layer = Layer(GEOMETRIES["wide_padding"], LOSSLESS)
    result, expected = check(layer, sample_tensors(layer), np.zeros((2, 3, 3, 4), np.float32))
    assert expected.clusters.tolist() == [[1], [1]] and result.stats.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("granularity", ["pixel", "segment"])
def test_clause_9_gain_restores_scaled_vectors(granularity):
    # Every vector is a multiple of one direction: the centroid times the gain is the vector itself.
    geometry = ConvGeometry(6, 5, 8, 1, 1, 11)
    layer = Layer(geometry, ReuseSetting(granularity, 4, 3, "learned", gain=True))
    tensors, rng = sample_tensors(layer), np.random.default_rng(0)
    tensors = replace(tensors, thresholds=np.zeros_like(tensors.thresholds))
    x = (rng.random((2, 6, 5, 1)) * 10 + 0.1) * rng.standard_normal(8)
    x = x.astype(np.float32)
    result, _ = check(layer, tensors, x)
    assert result.stats.tolist() == [[2, 1], [2, 1]]
    close(result.y, conv2d(x, tensors.w, tensors.bias, geometry))


@pytest.mark.parametrize(("granularity", "family"), KINDS)
def test_inputs_scaled_by_ten(granularity, family):
    layer = Layer(BASE, _setting(granularity, family))
    x = sample_input(BASE, 2)
    x[:, ::2] *= 10
    check(layer, sample_tensors(layer), x)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_power_of_two_scales_the_output(granularity):
    layer = Layer(BASE, _setting(granularity, "learned"))
    tensors = sample_tensors(layer)
    tensors = replace(tensors, bias=0 * tensors.bias, thresholds=0 * tensors.thresholds)
    x = sample_input(BASE, 2)
    plain, scaled = run(layer, tensors, x), run(layer, tensors, x * np.float32(8))
    np.testing.assert_array_equal(scaled.y, 8 * plain.y)
    np.testing.assert_array_equal(scaled.stats, plain.stats)


DENSE = {2: dense_geometry(1, 30, 13), 3: dense_geometry(6, 30, 13)}


@pytest.mark.parametrize(("granularity", "family"), KINDS)
@pytest.mark.parametrize("rank", [2, 3])
def test_permuted_rows_of_a_dense_layer(rank, granularity, family):
    geometry = DENSE[rank]
    layer = Layer(geometry, _setting(granularity, family, "batch"), rank=rank)
    tensors = sample_tensors(layer)
    x = sample_input(geometry, 24 // geometry.H, zeros=0.5)
    result, _ = check(layer, tensors, x)
    order = np.random.default_rng(1).permutation(24)
    shuffled = x.reshape(-1, 30)[order].reshape(x.shape)
    permuted, _ = check(layer, tensors, shuffled)
    expected = result.y.reshape(-1, 13)[order].reshape(result.y.shape)
    np.testing.assert_array_equal(permuted.stats, result.stats)
    if family == "exact":
        np.testing.assert_array_equal(permuted.y, expected)
    else:
        close(permuted.y, expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_permuted_images(granularity):
    layer = Layer(BASE, _setting(granularity))
    tensors, x = sample_tensors(layer), sample_input(BASE, 7)
    order = np.random.default_rng(1).permutation(7)
    np.testing.assert_array_equal(run(layer, tensors, x[order]).y, run(layer, tensors, x).y[order])


@pytest.mark.parametrize("setting", [s for s in ALL_SETTINGS if s.hash in ("gaussian", "exact")], ids=_name)
def test_one_function_serves_any_batch(setting):
    layer = Layer(BASE, setting)
    tensors = sample_tensors(layer)
    for batch in (1, 3, 7):
        x = sample_input(BASE, batch, zeros=0.5)
        result, _ = check(layer, tensors, x)
        if setting.scope == "image":
            for i in range(batch):
                np.testing.assert_array_equal(run(layer, tensors, x[i : i + 1]).y[0], result.y[i])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_known_batch_never_changes_a_byte(granularity):
    layer = Layer(BASE, _setting(granularity))
    tensors, x = sample_tensors(layer), sample_input(BASE, 2)
    known, symbolic = (run(replace(layer, batch=batch), tensors, x) for batch in (2, None))
    np.testing.assert_array_equal(known.y, symbolic.y)
    np.testing.assert_array_equal(known.stats, symbolic.stats)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", ["gaussian", "exact"])
def test_every_vector_its_own_cluster_gives_dense(granularity, family):
    geometry = ConvGeometry(6, 5, 32, 3, 3, 21, padding=(1, 0, 1, 2))
    layer = Layer(geometry, ReuseSetting(granularity, 32, 20, family))
    x = np.random.default_rng(2).standard_normal((2, 6, 5, 32)).astype(np.float32)
    tensors = sample_tensors(layer)
    result, expected = check(layer, tensors, x)
    if not layer.setting.lossless:
        vectors = np.array([np.count_nonzero(ids >= 0) for ids in expected.ids])
        assert (result.stats[:, 0] >= 0.98 * vectors).all()
    if (expected.clusters.sum(axis=1) == [np.count_nonzero(ids >= 0) for ids in expected.ids]).all():
        close(result.y, conv2d(x, tensors.w, tensors.bias, geometry))


@pytest.mark.parametrize("M", [1, 3, 10, 37, 64, 65])
def test_lossless_is_bit_identical_over_tiles(M):
    geometry = ConvGeometry(5, 5, 7, 3, 3, M, padding=(1, 1, 1, 1))
    tiles = {gemm_tile(isa, M) for isa in (AVX512, AVX2, NEON, SSE)} | {RegisterTile(5, 32)}
    x = sample_input(geometry, 2, zeros=0.97)
    tensors = sample_tensors(Layer(geometry))
    expected = run(Layer(geometry), tensors, x).y
    for tile in tiles:
        result = run(Layer(geometry, LOSSLESS, tile=tile), tensors, x)
        assert (result.stats[:, 1] == 1).all() and (result.stats[:, 0] < geometry.rows).all()
        np.testing.assert_array_equal(result.y, expected)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_lossless_is_bit_identical_to_dense(name):
    layer = Layer(GEOMETRIES[name], replace(LOSSLESS, scope=SCOPES[len(name) % 2]))
    tensors = sample_tensors(layer)
    for batch, zeros in ((1, 0.95), (7, 0.98), (2, 0.0)):
        x = sample_input(layer.geometry, batch, zeros=zeros)
        np.testing.assert_array_equal(check(layer, tensors, x)[0].y, _dense(layer, tensors, x))
    x[0, 1, 1, 0], x[1, 2] = np.nan, np.inf
    found, expected = run(layer, tensors, x).y, _dense(layer, tensors, x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found[~np.isnan(found)], expected[~np.isnan(expected)])


def _mixed_images(geometry):
    """Four images: blank, of two colours, few kinds of pixels, noise."""
    x = sample_input(geometry, 4, zeros=0)
    x[0] = 0
    x[1, :3], x[1, 3:] = x[1, 0, 0], 0
    x[3] = np.random.default_rng(9).standard_normal(x[3].shape)
    return x


@pytest.mark.parametrize(("granularity", "family"), KINDS)
def test_clause_13_guard_of_each_unit(granularity, family):
    layer = Layer(BASE, _setting(granularity, family))
    tensors, x = sample_tensors(layer), _mixed_images(BASE)
    free, _ = check(layer, tensors, x)
    dense = _dense(layer, tensors, x)
    counts = free.stats[:, 0]
    for limit in (int(counts[1]), int(counts[1]) - 1):
        guarded = replace(layer, setting=replace(layer.setting, max_clusters=limit))
        result, _ = check(guarded, tensors, x)
        reused = (counts <= limit) & (free.stats[:, 1] == 1)
        np.testing.assert_array_equal(result.stats[:, 1], reused)
        np.testing.assert_array_equal(result.y, np.where(reused.reshape(-1, 1, 1, 1), free.y, dense))
        if not layer.setting.lossless:
            np.testing.assert_array_equal(result.stats[:, 0], counts)
    assert free.stats[:2, 1].tolist() == [1, 1] and counts[0] < counts[1]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_clause_13_guard_of_a_batch(granularity):
    layer = Layer(BASE, replace(_setting(granularity, scope="batch"), max_clusters=0))
    tensors, x = sample_tensors(layer), sample_input(BASE, 3)
    result, _ = check(layer, tensors, x)
    assert result.stats[0, 1] == 0
    np.testing.assert_array_equal(result.y, _dense(layer, tensors, x))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("granularity", "family"), KINDS)
def test_clause_13_counts_non_finite_vectors(granularity, family, value):
    layer = Layer(GEOMETRIES["1x1"], ReuseSetting(granularity, 100, 6, family))
    tensors, x = sample_tensors(layer), np.ones((1, 5, 7, 19), np.float32)
    x[0, 0, :4] = value
    for limit, reused in ((4, 0), (5, 1)):
        guarded = replace(layer, setting=replace(layer.setting, max_clusters=limit))
        assert run(guarded, tensors, x).stats.tolist() == [[5, reused]]


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("non_finite", [False, True])
@pytest.mark.parametrize(
    ("granularity", "kernel", "scope", "side"),
    [("pixel", 1, "image", 44), ("pixel", 3, "batch", 34), ("segment", 2, "image", 36)],
)
def test_clause_12_more_clusters_than_a_table(granularity, kernel, scope, side, gain, non_finite):
    geometry = ConvGeometry(side, side, 24, kernel, kernel, 18, padding=(0, 1, kernel - 1, 0))
    layer = Layer(geometry, ReuseSetting(granularity, 6 if kernel == 1 else 12, 20, "gaussian", scope, gain))
    x = np.random.default_rng(4).standard_normal((2, side, side, 24)).astype(np.float32)
    x[:, 3:5, 7:9] = 0
    if non_finite:
        x[0, 1, 2, 3], x[1, -1, -2, 20] = np.nan, np.inf
    result, expected = check(layer, sample_tensors(layer), x)
    assert table_clusters(geometry, layer.setting) == BLOCK_CLUSTERS < expected.clusters.max()
    assert np.isfinite(result.y).all() != non_finite


def test_clause_12_exact_with_more_clusters_than_a_table():
    geometry = ConvGeometry(40, 36, 8, 1, 1, 5)
    layer = Layer(geometry, ReuseSetting("pixel", 4, hash="exact"))
    x = np.random.default_rng(4).standard_normal((1, 40, 36, 8)).astype(np.float32)
    x[0, 20] = x[0, 3]
    tensors = sample_tensors(layer)
    result, expected = check(layer, tensors, x)
    assert expected.clusters.tolist() == [[1404, 1404]]
    close(result.y, conv2d(x, tensors.w, tensors.bias, geometry))


@pytest.mark.parametrize(
    ("granularity", "family", "rank"), [(g, h, 4) for g, h in KINDS] + [("pixel", "gaussian", 2), ("row", "exact", 3)]
)
@pytest.mark.parametrize("parameters", [False, True], ids=["constants", "arguments"])
def test_the_compiled_function_runs_these_kernels(granularity, family, rank, parameters):
    layer = Layer(BASE if rank == 4 else DENSE[rank], _setting(granularity, family, "batch"), rank=rank)
    tensors = sample_tensors(layer)
    for batch in (1, 5):
        x = sample_input(layer.geometry, batch, zeros=0.9)
        expected, found = run(layer, tensors, x), run_vm(layer, tensors, x, parameters)
        np.testing.assert_array_equal(found.y, expected.y)
        np.testing.assert_array_equal(found.stats, expected.stats)
