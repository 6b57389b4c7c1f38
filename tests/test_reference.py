"""The NumPy reference: hand-computed cases, clause by clause of ``docs/algorithm.md``, and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.hashing.vectors import hashed_vectors, neuron_vector_blocks, neuron_vectors
from adr_tvm.product_steps import integer_terms, keeps_integers, levels
from adr_tvm.reference import (
    conv2d,
    conv2d_chain,
    reuse_conv2d,
    reuse_conv2d_given_ids,
    rounding_band,
    same_ids,
)
from adr_tvm.reference_ids import fused_multiply_add
from adr_tvm.settings import ReuseSetting

FLOAT64_ROUNDED_ONCE = 1e-6


def _case(seed, batch, geometry, zeros=0.3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, geometry.H, geometry.W, geometry.C)).astype(np.float32)
    x[rng.random(x.shape[:3]) < zeros] = 0
    w = rng.standard_normal((geometry.KH, geometry.KW, geometry.C, geometry.M)).astype(np.float32)
    return x, w, rng.standard_normal(geometry.M).astype(np.float32)


def _planes(seed, geometry, setting):
    rng = np.random.default_rng(seed + 1)
    shape = (geometry.segments(setting), geometry.vector_length(setting), setting.H)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[::2]).astype(np.float32)


def _loop_conv(x, w, bias, geometry):
    y = np.zeros((len(x), geometry.OH, geometry.OW, geometry.M))
    for b, oy, ox in np.ndindex(y.shape[:3]):
        for ky, kx in np.ndindex(geometry.KH, geometry.KW):
            iy = oy * geometry.strides[0] - geometry.padding[0] + ky * geometry.dilation[0]
            ix = ox * geometry.strides[1] - geometry.padding[1] + kx * geometry.dilation[1]
            if 0 <= iy < geometry.H and 0 <= ix < geometry.W:
                y[b, oy, ox] += x[b, iy, ix].astype(np.float64) @ w[ky, kx].astype(np.float64)
    return y + bias


GEOMETRIES = [
    ConvGeometry(5, 6, 4, 3, 3, 3, padding=(1, 1, 1, 1)),
    ConvGeometry(7, 5, 5, 3, 2, 2, strides=(2, 3), padding=(0, 2, 1, 0)),
    ConvGeometry(8, 7, 3, 2, 3, 4, strides=(1, 2), padding=(3, 0, 0, 4), dilation=(3, 2)),
    ConvGeometry(4, 4, 6, 1, 1, 2, strides=(2, 2)),
    dense_geometry(5, 7, 3),
]
SETTINGS = [
    ReuseSetting(granularity, L, 4, family, scope, gain)
    for granularity, L in (("pixel", 3), ("pixel", 100), ("segment", 5), ("segment", 999), ("row", 1))
    for family in ("gaussian", "exact")
    for scope in ("image", "batch")
    for gain in (False, True)
    if not (gain and (family == "exact" or granularity == "row"))
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_dense_follows_the_definition(geometry):
    x, w, bias = _case(0, 2, geometry)
    expected = _loop_conv(x, w, bias, geometry)
    np.testing.assert_allclose(conv2d(x, w, bias, geometry, dtype=np.float64), expected, rtol=1e-12, atol=1e-12)
    assert conv2d(x, w, bias, geometry).dtype == np.float32
    # fp32 chain: K <= 30 roundings of 6e-8 on sums below about 30.
    np.testing.assert_allclose(conv2d_chain(x, w, bias, geometry), expected, rtol=1e-5, atol=1e-5)


def test_activations():
    x = np.array([-2.0, 0.0, 3.0, 9.0, np.nan], np.float32)
    np.testing.assert_array_equal(Activation.relu().apply(x), [0, 0, 3, 9, np.nan])
    np.testing.assert_array_equal(Activation.relu6().apply(x), [0, 0, 3, 6, np.nan])
    np.testing.assert_array_equal(Activation("leaky_relu", slope=0.5).apply(x), [-1, 0, 3, 9, np.nan])
    np.testing.assert_array_equal(Activation().apply(x), x)
    with pytest.raises(ValueError, match="low <= high"):
        Activation("clip", low=1, high=0)


def test_fused_multiply_add_rounds_once():
    one, tiny = np.float32(1), np.float32(2.0**-12)
    # (1 + 2^-12)^2 - (1 + 2^-11) = 2^-24; rounding the product first would give 0.
    assert fused_multiply_add(np.array([one + tiny]), one + tiny, np.array([-(one + 2 * tiny)]))[0] == 2.0**-24
    # The product 2^-24 - 2^-70 brings an odd float just short of half way to its neighbour; float64 loses the
    # 2^-70, and rounding the tie to even would then give the neighbour.
    a, b, odd = (np.float32(v) for v in (1 + 2.0**-23, 2.0**-24 * (1 - 2.0**-23), 1 + 2.0**-23))
    for product_sign, sign in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        assert fused_multiply_add(np.array([product_sign * a]), b, np.array([sign * odd]))[0] == sign * odd


def test_clause_1_vectors_in_order_and_only_of_read_pixels():
    geometry = ConvGeometry(5, 5, 3, 1, 1, 1, strides=(2, 2))
    x = np.arange(2 * 5 * 5 * 3, dtype=np.float32).reshape(2, 5, 5, 3)
    vectors = neuron_vectors(x, geometry, ReuseSetting("pixel", L=2))
    assert vectors.shape == (18, 2, 2)
    np.testing.assert_array_equal(vectors[:, 0], x[:, ::2, ::2, :2].reshape(-1, 2))
    np.testing.assert_array_equal(vectors[:, 1, 0], x[:, ::2, ::2, 2].reshape(-1))
    assert not vectors[:, 1, 1].any()
    result = reuse_conv2d(
        x, np.ones((1, 1, 3, 1), np.float32), np.zeros(1), geometry, ReuseSetting("pixel", L=2, hash="exact")
    )
    assert result.ids.shape == (2, 1, 2, 5, 5) and result.ids.dtype == np.int32
    assert (result.ids[..., 1::2, :] == -1).all() and (result.ids[..., 1::2] == -1).all()
    np.testing.assert_array_equal(result.ids[0, 0, 0, ::2, ::2], np.arange(9).reshape(3, 3))


def test_segment_rows_are_in_the_order_c_kh_kw():
    geometry = ConvGeometry(3, 3, 2, 2, 2, 1)
    x = np.arange(18, dtype=np.float32).reshape(1, 3, 3, 2)
    row = neuron_vectors(x, geometry, ReuseSetting("row"))[0, 0]
    np.testing.assert_array_equal(row, [0, 2, 6, 8, 1, 3, 7, 9])
    np.testing.assert_array_equal(neuron_vectors(x, geometry, ReuseSetting("segment", L=3))[0, 2], [7, 9, 0])


def test_vectors_come_in_bounded_blocks(monkeypatch):
    geometry, setting = GEOMETRIES[0], ReuseSetting("segment", L=5)
    x = _case(0, 2, geometry)[0]
    whole = neuron_vectors(x, geometry, setting)
    monkeypatch.setattr("adr_tvm.hashing.vectors.BLOCK_BYTES", 1)
    blocks = list(neuron_vector_blocks(x, geometry, setting))
    assert len(blocks) == 2 * geometry.OH
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    with pytest.raises(ValueError, match=r"expected \[B, 5, 6, 4\]"):
        list(neuron_vector_blocks(x[:, 1:], geometry, setting))


def _tokens(rows, setting, planes=None, thresholds=None, w=None, activation=None):
    rows = np.array(rows, np.float32)
    n, K = rows.shape
    w = np.eye(K, dtype=np.float32) if w is None else np.array(w, np.float32)
    return reuse_conv2d(
        rows.reshape(1, n, 1, K),
        w.reshape(1, 1, K, -1),
        np.zeros(w.shape[1], np.float32),
        dense_geometry(n, K, w.shape[1]),
        setting,
        None if planes is None else np.array(planes, np.float32),
        None if thresholds is None else np.array(thresholds, np.float32),
        Activation() if activation is None else activation,
    )


def _ids(result):
    return result.ids.reshape(-1).tolist()


def test_clause_2_ties_are_zero_and_infinite_thresholds_switch_off():
    setting = ReuseSetting("row", H=2, hash="learned")
    rows = [[1, 5], [2, 5], [1, -5], [2, -5]]
    planes = [[[1, 0], [0, 1]]]
    assert _ids(_tokens(rows, setting, planes, [[1, 0]])) == [0, 1, 2, 3]
    assert _ids(_tokens(rows, setting, planes, [[1, np.inf]])) == [0, 1, 0, 1]
    assert _ids(_tokens(rows, setting, planes, [[2, 0]])) == [0, 0, 1, 1]
    assert _ids(_tokens(rows, setting, planes)) == [0, 0, 1, 1]


def test_clause_3_pads():
    geometry = ConvGeometry(2, 2, 1, 2, 2, 1, padding=(1, 1, 0, 0))
    x = np.ones((1, 2, 2, 1), np.float32)
    w, bias = np.ones((2, 2, 1, 1), np.float32), np.zeros(1, np.float32)
    # Rows of 2x2 taps: [0001], [0011], [0101], [1111]; L = 2 cuts them into the upper and the lower pair.
    np.testing.assert_array_equal(
        hashed_vectors(geometry, ReuseSetting("segment", L=2)), [[0, 1], [0, 1], [1, 1], [1, 1]]
    )
    never, always = np.full((2, 2, 1), -1, np.float32), np.full((2, 2, 1), 1, np.float32)
    for planes in (never, always):
        setting = ReuseSetting("segment", L=2, H=1, hash="learned")
        result = reuse_conv2d(x, w, bias, geometry, setting, planes)
        assert result.ids.tolist() == [[[-1, -1, 0, 0], [0, 0, 0, 0]]]
        np.testing.assert_array_equal(result.centroids[0][0], [[0.5, 1]])
        np.testing.assert_array_equal(result.centroids[0][1], [[0.5, 1]])
        assert result.y.reshape(-1).tolist() == [1.5, 1.5, 3, 3]
    pixel = reuse_conv2d(x, w, bias, geometry, ReuseSetting("pixel", H=1), never[:1, :1])
    assert _ids(pixel) == [0, 0, 0, 0]
    np.testing.assert_array_equal(pixel.y.reshape(-1), [1, 2, 2, 4])
    row = reuse_conv2d(x, w, bias, geometry, ReuseSetting("row", hash="exact"))
    assert _ids(row) == [0, 1, 2, 3]


def test_clause_4_zeros_are_apart_with_centroid_zero():
    setting = ReuseSetting("row", H=1, hash="gaussian")
    rows = [[-1, -1], [0, 0], [-3, -1], [-0.0, 0.0]]
    result = _tokens(rows, setting, [[[1], [1]]])
    assert _ids(result) == [0, 1, 0, 1]
    np.testing.assert_array_equal(result.y.reshape(4, 2), [[-2, -1], [0, 0], [-2, -1], [0, 0]])
    assert result.clusters.tolist() == [[2]]


@pytest.mark.parametrize("family", ["gaussian", "exact"])
def test_clause_5_non_finite_vectors_are_alone(family):
    setting = ReuseSetting("row", H=1, hash=family)
    rows = [[1, 1], [np.nan, 1], [np.nan, 1], [1, 1], [np.inf, 0]]
    result = _tokens(rows, setting, [[[1], [1]]])
    assert _ids(result) == [0, -2, -2, 0, -2]
    assert result.clusters.tolist() == [[4]]
    np.testing.assert_array_equal(result.y.reshape(5, 2)[[0, 3]], [[1, 1], [1, 1]])
    assert np.isnan(result.y.reshape(5, 2)[[1, 2]]).all()
    assert result.y.reshape(5, 2)[4, 0] == np.inf


def test_clause_6_numbers_follow_first_members():
    setting = ReuseSetting("row", H=2, hash="learned")
    result = _tokens([[3], [0], [1], [2], [0], [3]], setting, [[[1, 1]]], [[1.5, 2.5]])
    assert _ids(result) == [0, 1, 2, 3, 1, 0]


def test_clause_7_equal_members_give_that_vector():
    value = np.float32(0.1)
    result = _tokens([[value]] * 3 + [[value * 2]], ReuseSetting("row", H=1), [[[1]]], [[0.15]])
    assert result.y.reshape(-1)[:3].tolist() == [value] * 3
    assert result.centroids[0][0].tolist() == [[value], [np.float32(value * 2)]]


def test_clause_8_exact_tells_bits_apart():
    result = _tokens([[0.0, 1], [-0.0, 1], [0.0, 1], [0, 0]], ReuseSetting("row", hash="exact"))
    assert _ids(result) == [0, 1, 0, 2]


def test_clause_9_gain():
    setting = ReuseSetting("pixel", L=2, H=1, gain=True)
    w = [[1.0], [2.0]]
    result = _tokens([[1, 0], [3, 0], [0, 0], [-1, 0]], setting, [[[1], [0]]], w=w)
    np.testing.assert_allclose(result.gains.reshape(-1), [0.5, 1.5, 1, 1])
    np.testing.assert_allclose(result.y.reshape(-1), [1, 3, 0, -1])
    # Members that cancel: <c, c> = 0, so the factor is 1 and the product that of the zero centroid.
    cancelled = _tokens([[1, 0], [-1, 0]], setting, [[[0], [0]]], w=w)
    assert cancelled.gains.reshape(-1).tolist() == [1, 1] and not cancelled.y.any()


def test_clause_10_segments_sum_before_bias_and_activation():
    geometry = dense_geometry(2, 3, 1)
    x = np.array([[1, 2, 4], [3, 2, 8]], np.float32).reshape(1, 2, 1, 3)
    w = np.ones((1, 1, 3, 1), np.float32)
    setting = ReuseSetting("segment", L=2, H=1)
    planes = np.ones((2, 2, 1), np.float32)
    result = reuse_conv2d(x, w, np.full(1, -11.0), geometry, setting, planes, None, Activation.relu())
    # Centroids (2, 2) and (6, pad): 2 + 2 + 6 - 11 < 0.
    assert result.y.reshape(-1).tolist() == [0, 0]
    plain = reuse_conv2d(x, w, np.full(1, -9.0), geometry, setting, planes, np.array([[0], [5]], np.float32))
    assert plain.y.reshape(-1).tolist() == [-1, 3]


def test_clause_13_guard_is_taken_for_each_unit():
    geometry = dense_geometry(4, 1, 1)
    x = np.array([[1, 2, 3, 4], [1, 1, 1, 1]], np.float32).reshape(2, 4, 1, 1)
    planes, thresholds = np.ones((1, 1, 2), np.float32), np.array([[1.5, 2.5]], np.float32)
    w, bias = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    setting = ReuseSetting("row", H=2, max_clusters=2)
    result = reuse_conv2d(x, w, bias, geometry, setting, planes, thresholds)
    assert result.clusters.tolist() == [[3], [1]] and result.reused.tolist() == [False, True]
    assert result.y.reshape(-1).tolist() == [1, 2, 3, 4, 1, 1, 1, 1]
    unguarded = reuse_conv2d(x, w, bias, geometry, ReuseSetting("row", H=2), planes, thresholds)
    assert unguarded.y.reshape(-1).tolist() == [1, 2, 3.5, 3.5, 1, 1, 1, 1]
    batch = ReuseSetting("row", H=2, scope="batch", max_clusters=3)
    assert reuse_conv2d(x, w, bias, geometry, batch, planes, thresholds).reused.tolist() == [True]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_shapes_and_given_ids_of_all_combinations(geometry, setting):
    batch = 7
    x, w, bias = _case(3, batch, geometry)
    planes, thresholds = _planes(3, geometry, setting)
    result = reuse_conv2d(x, w, bias, geometry, setting, planes, thresholds, Activation.relu())
    U = batch if setting.scope == "image" else 1
    S, G = geometry.segments(setting), batch // U
    pixel = setting.granularity == "pixel"
    assert result.ids.shape == ((U, G, S, geometry.H, geometry.W) if pixel else (U, S, G * geometry.rows))
    assert result.clusters.shape == (U, S) and result.reused.all()
    assert [len(c) for c in result.centroids[0]] == result.clusters[0].tolist()
    again = reuse_conv2d_given_ids(x, w, bias, geometry, setting, result.ids, Activation.relu())
    np.testing.assert_array_equal(again.y, result.y)
    np.testing.assert_array_equal(again.clusters, result.clusters)
    np.testing.assert_array_equal(again.ids, result.ids)
    if setting.hash == "exact":
        dense = conv2d(x, w, bias, geometry, Activation.relu())
        np.testing.assert_allclose(result.y, dense, rtol=FLOAT64_ROUNDED_ONCE, atol=FLOAT64_ROUNDED_ONCE)
    with pytest.raises(ValueError, match="ids are"):
        reuse_conv2d_given_ids(x, w, bias, geometry, setting, result.ids[..., 1:])


def test_wrong_planes_are_named():
    geometry, setting = GEOMETRIES[0], ReuseSetting("pixel", L=4, H=3)
    x, w, bias = _case(0, 1, geometry)
    with pytest.raises(ValueError, match="planes are None"):
        reuse_conv2d(x, w, bias, geometry, setting)
    with pytest.raises(ValueError, match=r"expected \[S, L, H\] = \(1, 4, 3\)"):
        reuse_conv2d(x, w, bias, geometry, setting, np.zeros((1, 4, 2), np.float32))
    with pytest.raises(ValueError, match="thresholds are"):
        reuse_conv2d(x, w, bias, geometry, setting, np.zeros((1, 4, 3), np.float32), np.zeros(3, np.float32))


def test_rounding_band_and_same_ids():
    rows = np.array([[1, 0], [1 + 1e-6, 0], [2, 0], [0, 0], [np.nan, 0]], np.float32)
    geometry, setting = dense_geometry(5, 2, 1), ReuseSetting("row", H=1)
    planes, mu = np.array([[[1], [0]]], np.float32), np.array([[1, 1]], np.float32)
    band = rounding_band(rows.reshape(1, 5, 1, 2), geometry, setting, planes, mu)
    assert band.tolist() == [[[True, True, False, False, False]]]
    other = rounding_band(rows.reshape(1, 5, 1, 2), geometry, setting, planes, mu, np.array([[2]]))
    assert other.tolist() == [[[False, False, True, False, False]]]
    ids = np.array([[[0, 1, 1, 2, -2]]])
    flipped = np.array([[[0, 0, 1, 2, -2]]])
    assert same_ids(ids, ids, band & False, setting) and not same_ids(ids, flipped, band & False, setting)
    assert same_ids(ids, flipped, band, setting)
    assert not same_ids(ids, np.array([[[0, 1, 1, 3, -2]]]), band, setting)
    assert not same_ids(ids, np.array([[[0, 1, 1, 2, -1]]]), band, setting)
    assert not same_ids(ids, np.array([[[0, 1, 1, 1, -2]]]), band, setting)


@st.composite
def layers(draw):
    """A small convolution, a setting and a seed for its data."""
    KH, KW, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    geometry = ConvGeometry(
        H=draw(st.integers(5, 8)),
        W=draw(st.integers(5, 8)),
        C=draw(st.integers(1, 6)),
        KH=KH,
        KW=KW,
        M=draw(st.integers(1, 3)),
        strides=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=tuple(draw(st.integers(0, 2)) for _ in range(4)),
        dilation=(dilation, dilation),
    )
    setting = ReuseSetting(
        granularity=draw(st.sampled_from(["pixel", "segment", "row"])),
        L=draw(st.integers(1, 9)),
        H=draw(st.integers(1, 6)),
        hash=draw(st.sampled_from(["gaussian", "exact"])),
        scope=draw(st.sampled_from(["image", "batch"])),
    )
    return geometry, setting, draw(st.integers(0, 2**16))


def _run(x, w, bias, layer):
    geometry, setting, seed = layer
    return reuse_conv2d(x, w, bias, geometry, setting, *_planes(seed, geometry, setting))


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_every_vector_its_own_cluster_gives_dense(layer):
    geometry, setting, seed = layer
    x, w, bias = _case(seed, 2, geometry, zeros=0)
    ids = _run(x, w, bias, layer).ids
    alone = np.full(ids.shape, -1, np.int32)
    view, used = (np.moveaxis(a, 2, 1) if setting.granularity == "pixel" else a for a in (alone, ids >= 0))
    for u, s in np.ndindex(view.shape[:2]):
        view[u, s][used[u, s]] = np.arange(np.count_nonzero(used[u, s]))
    _close(reuse_conv2d_given_ids(x, w, bias, geometry, setting, alone).y, _loop_conv(x, w, bias, geometry))


@settings(max_examples=40, deadline=None)
@given(layers())
def test_scope_image_does_not_see_batch_mates(layer):
    geometry, setting, seed = layer
    x, w, bias = _case(seed, 3, geometry)
    layer = geometry, ReuseSetting(setting.granularity, setting.L, setting.H, setting.hash), seed
    together = _run(x, w, bias, layer)
    for i in range(3):
        alone = _run(x[i : i + 1], w, bias, layer)
        np.testing.assert_array_equal(together.ids[i], alone.ids[0])
        _close(together.y[i], alone.y[0])


@settings(max_examples=40, deadline=None)
@given(layers())
def test_permuted_images_permute_the_batch(layer):
    geometry, _, seed = layer
    x, w, bias = _case(seed, 4, geometry)
    order = np.random.default_rng(seed).permutation(4)
    plain, permuted = _run(x, w, bias, layer), _run(x[order], w, bias, layer)
    _close(permuted.y, plain.y[order])
    assert permuted.clusters.sum() == plain.clusters.sum()


@settings(max_examples=40, deadline=None)
@given(layers())
def test_zero_images_give_the_bias(layer):
    geometry, _, seed = layer
    x, w, bias = _case(seed, 2, geometry, zeros=1)
    result = _run(x, w, bias, layer)
    np.testing.assert_array_equal(result.y, np.broadcast_to(bias, result.y.shape))
    assert result.clusters.max(initial=0) <= 1


@settings(max_examples=40, deadline=None)
@given(layers())
def test_nan_reaches_only_the_outputs_that_read_it(layer):
    geometry, _, seed = layer
    x, w, bias = _case(seed, 2, geometry)
    rng = np.random.default_rng(seed)
    b, i, j, c = (int(rng.integers(n)) for n in x.shape)
    x[b, i, j, c] = np.nan
    result = _run(x, w, bias, layer)
    expected = np.isnan(conv2d(x, w, bias, geometry))
    np.testing.assert_array_equal(np.isnan(result.y), expected)
    assert (result.ids == -2).any() == expected.any()


@settings(max_examples=40, deadline=None)
@given(layers())
def test_clusters_are_bounded_and_numbered_without_gaps(layer):
    geometry, setting, seed = layer
    x, w, bias = _case(seed, 2, geometry)
    result = _run(x, w, bias, layer)
    ids = np.moveaxis(result.ids, 2, 1) if setting.granularity == "pixel" else result.ids
    for u, s in np.ndindex(ids.shape[:2]):
        shared = ids[u, s][ids[u, s] >= 0]
        assert sorted(set(shared.tolist())) == list(range(result.clusters[u, s]))
        assert (np.diff(np.maximum.accumulate(shared)) <= 1).all() and (len(shared) == 0 or shared[0] == 0)
        if setting.hash != "exact":
            assert result.clusters[u, s] <= min(2**setting.H, shared.size) + 1


def test_clause_15_tables():
    planes, rows = np.ones((1, 2, 1), np.float32), [[3.0, 4.0], [0.0, 0.0]]
    w = [[1.0, 0.0, 1.00390625], [0.0, 0.5, 0.0]]

    def products(table):
        result = _tokens(rows, ReuseSetting("pixel", L=2, H=1, table=table), planes, w=w)
        assert not result.y[0, 1].any()
        return result.y[0, 0, 0]

    steps = 5 * np.array([1, 0.5, 1.00390625])  # ||c|| ||w_m||
    for table, most in (("int8", 127), ("int16", 32767)):
        expected = np.rint(np.array([3, 2, 3.01171875]) / steps * most) * steps / most
        np.testing.assert_allclose(products(table), expected, rtol=1e-6)
    np.testing.assert_array_equal(products("bfloat16"), [3, 2, 3.015625])
    np.testing.assert_array_equal(products("float32"), [3, 2, 3.01171875])


def test_clause_15_levels():
    assert levels("int8", taps=9, segments=100) == 127
    assert levels("int16", taps=9, segments=100) == 32767 // 63 and integer_terms("int16", taps=9) == 63
    assert levels("int16", taps=9, segments=2) == 32767 // 18
    assert levels("int16", taps=121, segments=3) == 32767 // 121 and integer_terms("int16", taps=121) == 121
    assert integer_terms("int8", taps=9) == 252 and not keeps_integers("int8", 258) and keeps_integers("int16", 258)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "int4"}, "table is 'int4'"),
        ({"granularity": "row", "table": "int8"}, "table=int8 is for pixel"),
        ({"hash": "exact", "table": "bfloat16"}, "table=bfloat16 is for pixel"),
        ({"gain": True, "table": "int16"}, "not with table=int16"),
    ],
)
def test_settings_of_tables(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReuseSetting(**arguments)
