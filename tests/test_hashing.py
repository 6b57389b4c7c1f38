"""Hash families and the statistics they are fitted to."""

import numpy as np
import pytest

from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.hashing.planes import analyse, learned_planes, lloyd_thresholds, make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.reference import reuse_conv2d
from adr_tvm.settings import ReuseSetting


def _activations(n, S, L, seed=0):
    """Rectified, correlated vectors [n, S, L], a tenth of them zero, as after a ReLU."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((S, 3, L))
    vectors = np.einsum("nsr,srl->nsl", rng.standard_normal((n, S, 3)), mix) + 0.1 * rng.standard_normal((n, S, L))
    vectors[rng.random((n, S)) < 0.1] = 0
    return np.maximum(vectors, 0).astype(np.float32)


def _statistics(vectors, seed=0, block=None, **options):
    statistics = VectorStatistics(*vectors.shape[1:], seed, **options)
    for start in range(0, len(vectors), block or len(vectors)):
        statistics.update(vectors[start : start + (block or len(vectors))])
    return statistics


@pytest.mark.parametrize("L", [6, 80])
def test_statistics_are_those_of_the_nonzero_finite_vectors(L):
    vectors = _activations(500, 2, L)
    vectors[3, 0, 1], vectors[4, 1, 2] = np.nan, np.inf
    statistics = _statistics(vectors, block=130)
    for s in range(2):
        kept = vectors[:, s][np.isfinite(vectors[:, s]).all(1) & vectors[:, s].any(1)].astype(np.float64)
        assert statistics.count[s] == len(kept) < 500
        np.testing.assert_allclose(statistics.mean[s], kept.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance(s), np.cov(kept.T, bias=True), atol=1e-12)
        np.testing.assert_array_equal(statistics.sample(s), kept)


def test_sample_is_uniform_bounded_and_independent_of_blocks():
    vectors = np.arange(1, 20001, dtype=np.float32).reshape(-1, 1, 1)
    whole = _statistics(vectors, sample_size=2000)
    cut = _statistics(vectors, sample_size=2000, block=777)
    np.testing.assert_array_equal(whole.sample(0), cut.sample(0))
    sample = whole.sample(0).ravel()
    assert len(sample) == len(np.unique(sample)) == 2000
    # Counts in tenths of the stream are near Binomial(2000, 0.1): standard deviation 13.4, 4.5 times allowed.
    assert np.abs(np.histogram(sample, 10, (0, 20000))[0] - 200).max() < 60
    assert not np.array_equal(sample, _statistics(vectors, seed=1, sample_size=2000).sample(0).ravel())
    assert VectorStatistics(1, 500_000, 0)._reservoir.shape[1] == 256


def test_statistics_refuse_wrong_shapes():
    with pytest.raises(ValueError, match="expected >= 1"):
        VectorStatistics(0, 4, 0)
    with pytest.raises(ValueError, match=r"expected \[n, 2, 4\]"):
        VectorStatistics(2, 4, 0).update(np.zeros((3, 4, 2), np.float32))
    with pytest.raises(ValueError, match="no covariance"):
        VectorStatistics(1, 1025, 0).covariance(0)


def test_gaussian_is_centred_seeded_and_nested():
    statistics = _statistics(_activations(300, 3, 5))
    planes = make_planes("gaussian", 8, statistics, seed=4)
    assert planes.planes.shape == (3, 5, 8) and planes.planes.dtype == np.float32
    assert planes.thresholds.shape == (3, 8) and planes.thresholds.dtype == np.float32
    np.testing.assert_allclose(
        planes.thresholds, np.einsum("slh,sl->sh", planes.planes, statistics.mean), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(make_planes("gaussian", 3, statistics, 4).planes, planes.planes[..., :3])
    np.testing.assert_array_equal(make_planes("gaussian", 8, statistics, 4).planes, planes.planes)
    assert not np.array_equal(make_planes("gaussian", 8, statistics, 5).planes, planes.planes)
    plain = make_planes("gaussian", 8, statistics, 4, center=False)
    assert not plain.thresholds.any() and not plain.mu.any()
    np.testing.assert_array_equal(plain.planes, planes.planes)


def test_lloyd_finds_the_clusters_of_a_mixture():
    values = np.concatenate([np.full(900, 0.0), np.full(50, 4.0), np.full(50, 10.0)])
    np.testing.assert_allclose(lloyd_thresholds(values, 2), [2, 7])
    uniform = lloyd_thresholds(np.linspace(0, 1, 4001), 3)
    np.testing.assert_allclose(uniform, [0.25, 0.5, 0.75], atol=1e-3)
    assert len(lloyd_thresholds(np.zeros(5), 3)) == 3


def test_pca_deals_bits_by_variance_over_squared_levels():
    rng = np.random.default_rng(0)
    deviations = np.array([8.0, 2.0, 1.0])
    vectors = (10 + rng.standard_normal((4000, 1, 3)) * deviations).astype(np.float32)
    planes = make_planes("pca", 5, _statistics(vectors), 0)
    # 64/1, 64/4, 64/9, 64/16, then 4/1 against 64/25.
    owner = np.abs(planes.planes[0]).argmax(axis=0)
    assert owner.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(np.abs(planes.planes[0]).max(axis=0), 1, atol=0.01)
    assert (planes.planes[0].max(axis=0) > 0.9).all()
    assert (np.diff(planes.thresholds[0, :4]) > 0).all()
    np.testing.assert_array_equal(planes.planes, make_planes("pca", 5, _statistics(vectors), 0).planes)


def test_pca_allows_more_bits_than_entries_and_gives_thermometer_keys():
    vectors = _activations(2000, 2, 2)
    planes = make_planes("pca", 12, _statistics(vectors), 0)
    assert planes.planes.shape == (2, 2, 12)
    keys = planes.keys(vectors)
    for s in range(2):
        directions, counts = np.unique(planes.planes[s], axis=1, return_counts=True)
        assert directions.shape[1] == 2
        assert len(np.unique(keys[:, s])) <= np.prod(counts + 1)


def test_pca_loses_less_than_gaussian_at_no_more_clusters():
    train, test = np.split(_activations(8000, 4, 16), 2)
    statistics = _statistics(train)
    for H in (8, 12):
        r_pca, nmse_pca = analyse(test, make_planes("pca", H, statistics, 0))
        r_gaussian, nmse_gaussian = analyse(test, make_planes("gaussian", H, statistics, 0))
        assert r_pca < r_gaussian and nmse_pca < 0.7 * nmse_gaussian


def test_pca_of_long_vectors_comes_from_the_sample():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(1500)
    direction /= np.linalg.norm(direction)
    vectors = rng.standard_normal((300, 1, 1)) * 50 * direction + rng.standard_normal((300, 1, 1500))
    statistics = _statistics(vectors.astype(np.float32))
    assert statistics.scatter is None
    planes = make_planes("pca", 3, statistics, 0)
    assert abs(planes.planes[0, :, 0] @ direction) > 0.99
    np.testing.assert_array_equal(planes.planes, make_planes("pca", 3, statistics, 0).planes)


@pytest.mark.parametrize("length", [4, 1500])
def test_pca_without_variance_falls_back_to_gaussian(length):
    empty = VectorStatistics(1, length, 0)
    constant = _statistics(np.ones((10, 1, length), np.float32))
    for statistics in (empty, constant):
        np.testing.assert_array_equal(
            make_planes("pca", 4, statistics, 7).planes, make_planes("gaussian", 4, statistics, 7).planes
        )


def test_learned_planes_broadcast_and_are_checked():
    planes = learned_planes(np.ones((4, 3)), 5, 4)
    assert planes.planes.shape == (5, 4, 3) and planes.planes.dtype == np.float32
    assert planes.thresholds.shape == (5, 3) and not planes.thresholds.any()
    per_segment = learned_planes(np.ones((5, 4, 3)), 5, 4, thresholds=np.array([0, 1, np.inf]))
    np.testing.assert_array_equal(per_segment.thresholds[4], [0, 1, np.inf])
    with pytest.raises(ValueError, match=r"expected \[4, H\]"):
        learned_planes(np.ones((3, 4)), 5, 4)
    with pytest.raises(ValueError, match="for 2 segments, the layer has 5"):
        learned_planes(np.ones((2, 4, 3)), 5, 4)
    with pytest.raises(ValueError, match="thresholds are"):
        learned_planes(np.ones((4, 3)), 5, 4, np.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        learned_planes(np.full((4, 3), np.nan), 5, 4)


def test_make_planes_names_what_it_cannot_make():
    statistics = VectorStatistics(1, 2, 0)
    assert make_planes("exact", 4, statistics, 0) is None
    with pytest.raises(ValueError, match="'learned'"):
        make_planes("learned", 4, statistics, 0)
    with pytest.raises(ValueError, match="H is 0"):
        make_planes("pca", 0, statistics, 0)


@pytest.mark.parametrize("family", ["pca", "exact"])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("granularity", ["pixel", "row"])
def test_analyse_counts_what_the_reference_counts(family, scope, granularity):
    geometry = ConvGeometry(6, 7, 5, 3, 3, 1)
    setting = ReuseSetting(granularity, L=3, H=6, hash=family, scope=scope)
    x = np.round(_activations(3 * 42, 1, 5), 1).reshape(3, 6, 7, 5)
    x[0, 0, 0, 0] = np.nan
    vectors = neuron_vectors(x, geometry, setting)
    planes = make_planes(family, 6, _statistics(vectors), 0)
    given = (None, None) if planes is None else (planes.planes, planes.thresholds)
    result = reuse_conv2d(x, np.zeros((3, 3, 5, 1)), np.zeros(1), geometry, setting, *given)
    r_c, nmse = analyse(vectors, planes, units=3 if scope == "image" else 1)
    assert r_c == result.clusters.sum() / (len(vectors) * vectors.shape[1])
    assert isinstance(r_c, float) and isinstance(nmse, float)
    assert nmse == 0 if family == "exact" else 0 < nmse < 1


def test_analyse_by_hand():
    planes = learned_planes(np.array([[1.0]]), 1, 1, np.array([2.5]))
    # Clusters {1, 2}, {5, 7}, {0}: error 0.5 + 2, variance around 3.
    vectors = np.array([1, 2, 5, 7, 0], np.float32).reshape(-1, 1, 1)
    r_c, nmse = analyse(vectors, planes)
    assert r_c == 3 / 5 and nmse == pytest.approx(2.5 / (4 + 1 + 4 + 16 + 9))
    with pytest.raises(ValueError, match="2 units"):
        analyse(vectors, planes, units=2)
    assert analyse(np.full((2, 1, 1), np.nan, np.float32), planes) == (1.0, 0.0)


def test_dense_layers_hash_their_tokens():
    geometry, setting = dense_geometry(10, 8, 4), ReuseSetting("pixel", L=3, H=4)
    x = _activations(10, 1, 8).reshape(1, 10, 1, 8)
    assert neuron_vectors(x, geometry, setting).shape == (10, 3, 3)
    np.testing.assert_array_equal(
        neuron_vectors(x, geometry, ReuseSetting("segment", L=3)), neuron_vectors(x, geometry, setting)
    )
