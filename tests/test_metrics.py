"""Metrics and their bounds."""

import math

import numpy as np
import pytest

from adr_tvm.metrics.confidence import mean_upper, paired_drop_upper, proportion_upper, student_quantile
from adr_tvm.metrics.metrics import Agreement, Nmse, Psnr, Top1, choose_metric


def _scores(classes, count=4):
    return np.eye(count, dtype=np.float32)[classes]


def test_proportion_bound_is_clopper_pearson():
    assert proportion_upper(0, 500) == pytest.approx(1 - 0.1 ** (1 / 500), rel=1e-9)
    assert proportion_upper(0, 500) == pytest.approx(0.0046, abs=1e-4)
    # Tables of the exact binomial: P(X <= 5; 10, p) = 0.1 at 0.7327, P(X <= 1; 20, p) = 0.1 at 0.1810.
    assert proportion_upper(5, 10) == pytest.approx(0.7327, abs=1e-4)
    assert proportion_upper(1, 20) == pytest.approx(0.1810, abs=1e-4)
    assert proportion_upper(7, 7) == proportion_upper(0, 0) == 1


def test_student_quantiles():
    # Tables: 1.886, 1.476, 1.310.
    assert [student_quantile(0.9, k) for k in (2, 5, 30)] == pytest.approx([1.886, 1.476, 1.310], rel=0.01)
    assert student_quantile(0.9, 0) == math.inf
    assert mean_upper(np.array([1.0])) == math.inf
    assert mean_upper(np.array([1.0, 1.0])) == 1


def test_paired_bound_solves_the_score_equation():
    lost, won, n = 12, 5, 300
    d = paired_drop_upper(lost, won, n)
    q = np.linspace(1e-6, 0.2, 400_000)
    likelihood = lost * np.log(q + d) + won * np.log(q) + (n - lost - won) * np.log1p(-2 * q - d)
    best = q[likelihood.argmax()]
    score = (lost - won - n * d) / math.sqrt(n * (2 * best + d * (1 - d)))
    assert score == pytest.approx(-1.2816, abs=1e-3)


def test_paired_bound_orders_and_limits():
    assert paired_drop_upper(0, 0, 500) == proportion_upper(0, 500)
    assert paired_drop_upper(5, 0, 500) >= proportion_upper(5, 500)
    assert paired_drop_upper(5, 0, 500) > paired_drop_upper(5, 3, 500) > paired_drop_upper(5, 9, 500)
    assert paired_drop_upper(0, 20, 100) < 0
    assert paired_drop_upper(0, 0, 0) == 1


@pytest.mark.parametrize(("loss", "win"), [(0.005, 0.005), (0.03, 0.02), (0.01, 0.0)])
def test_paired_bound_covers(loss, win):
    draws = np.random.default_rng(0).multinomial(500, [loss, win, 1 - loss - win], 1500)
    bounds = {}
    for lost, won, _ in draws.tolist():
        bounds.setdefault((lost, won), paired_drop_upper(lost, won, 500))
    # Nominal 0.9; the distribution is discrete.
    assert np.mean([bounds[lost, won] >= loss - win for lost, won, _ in draws.tolist()]) > 0.86


def test_top1_is_paired_and_streams():
    labels = np.array([0, 1, 2, 3, 0, 1])
    dense, out = _scores([0, 1, 2, 3, 1, 0]), _scores([0, 1, 2, 0, 0, 0])
    metric = Top1()
    metric.update(dense[:4], out[:4], labels[:4])
    metric.update(dense[4:], out[4:], labels[4:])
    assert metric.images == 6
    assert metric.value() == pytest.approx(4 / 6) and metric.drop() == 0
    assert metric.bound() == paired_drop_upper(1, 1, 6)
    assert metric.within(0.9) and not metric.within(0.1)
    with pytest.raises(ValueError, match="labels are None"):
        metric.update(dense, out)
    with pytest.raises(ValueError, match="those of the dense network"):
        metric.update(dense, out[:2], labels)


def test_nan_rows_are_wrong_and_disagree():
    dense = _scores([0, 1])
    out = dense.copy()
    out[0, 3] = np.nan
    top1, agreement = Top1(), Agreement()
    top1.update(dense, out, np.array([0, 1]))
    agreement.update(dense, out)
    assert top1.drop() == agreement.drop() == 0.5


def test_agreement_needs_ln_10_over_budget_images():
    metric = Agreement()
    dense = _scores(np.arange(500) % 4)
    metric.update(dense.reshape(500, 4, 1, 1), dense.reshape(500, 4, 1, 1))
    assert metric.value() == 1 and metric.drop() == 0
    assert metric.bound() == pytest.approx(0.0046, abs=1e-4)
    assert metric.within(0.005) and not metric.within(0.004)
    assert metric.images_needed(0.005) == pytest.approx(math.log(10) / 0.005, rel=0.01)
    metric.update(dense[:500], np.roll(dense, 1, axis=1))
    assert metric.value() == 0.5 and metric.images_needed(0.4) is None


def test_images_needed_is_about_enough():
    top1 = Top1()
    labels = np.zeros(200, int)
    dense, out = _scores(labels), _scores(np.where(np.arange(200) < 2, 1, 0))
    top1.update(dense, out, labels)
    assert top1.drop() == pytest.approx(0.01)
    needed = top1.images_needed(0.02)
    fewer = needed // 2
    assert paired_drop_upper(0.01 * needed, 0, needed) <= 0.02 < paired_drop_upper(0.01 * fewer, 0, fewer)
    assert top1.images_needed(0.01) is None and top1.images_needed(-1) is None


def test_nmse_is_around_channel_means_and_streams():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((40, 3, 4, 5)) + np.array([10, -5, 0]).reshape(3, 1, 1)
    out = dense + 0.1 * rng.standard_normal(dense.shape)
    metric = Nmse()
    for start in range(0, 40, 7):
        metric.update(dense[start : start + 7], out[start : start + 7])
    variance = ((dense - dense.mean(axis=(0, 2, 3), keepdims=True)) ** 2).sum()
    assert metric.value() == pytest.approx(((out - dense) ** 2).sum() / variance)
    assert metric.drop() == metric.value() < metric.bound() < 1.1 * metric.value()
    assert metric.within(0.011) and not metric.within(metric.value())
    assert metric.images_needed(0.02) == 2 and metric.images_needed(0.005) is None
    assert metric.images_needed(metric.value() * 1.001) > 40


@pytest.mark.parametrize("shape", [(400, 6), (80, 5, 6)])
def test_nmse_of_features_is_around_column_means(shape):
    rng = np.random.default_rng(1)
    dense = rng.standard_normal(shape) + 100 * np.arange(6)
    metric = Nmse()
    metric.update(dense, dense + 1)
    assert metric.value() == pytest.approx(1, rel=0.1)


def test_psnr():
    dense = np.zeros((10, 1, 2, 2))
    dense[..., 0] = 100
    metric = Psnr()
    metric.update(dense, dense + 1)
    assert metric.value() == metric.drop() == pytest.approx(40)
    assert metric.bound() == pytest.approx(40)
    assert metric.within(39.9) and not metric.within(40.1)
    given = Psnr(data_range=255)
    given.update(dense, dense + 1)
    assert given.value() == pytest.approx(20 * math.log10(255))
    exact = Psnr()
    exact.update(dense, dense)
    assert exact.value() == exact.bound() == math.inf and exact.within(99)
    assert metric.images_needed(30) == 2 and metric.images_needed(50) is None
    noisy = Psnr()
    noisy.update(dense, dense + np.arange(10).reshape(-1, 1, 1, 1))
    assert noisy.bound() < noisy.value()


def test_non_finite_outputs_fail_unless_the_dense_ones_are():
    dense = np.random.default_rng(0).standard_normal((5, 3))
    broken = dense.copy()
    broken[2, 1] = np.nan
    for kind in (Nmse, Psnr):
        failed, excused, repaired = kind(), kind(), kind()
        failed.update(dense, broken)
        assert failed.value() == failed.bound() == (math.inf if kind is Nmse else -math.inf)
        excused.update(broken, broken)
        assert excused.value() == (0 if kind is Nmse else math.inf)
        repaired.update(broken, dense)
        assert repaired.value() == failed.value()
        assert not failed.within(1e9 if kind is Nmse else -1e9) and failed.images_needed(0.5) is None


def test_constant_outputs():
    metric = Nmse()
    metric.update(np.ones((3, 2)), np.ones((3, 2)))
    assert metric.value() == 0
    metric.update(np.ones((3, 2)), np.zeros((3, 2)))
    assert metric.value() == math.inf


@pytest.mark.parametrize("kind", [Top1, Agreement, Nmse, Psnr])
def test_without_images_nothing_is_promised(kind):
    metric = kind()
    assert math.isnan(metric.value()) and math.isnan(metric.drop()) and metric.images == 0
    assert not metric.within(30 if kind is Psnr else 0.5)


def test_choose_metric():
    classes, image = np.zeros((2, 10)), np.zeros((2, 3, 8, 8))
    assert choose_metric("auto", True, classes).name == "top1"
    assert choose_metric("auto", False, classes).name == "agreement"
    assert choose_metric("auto", False, classes.reshape(2, 10, 1, 1)).name == "agreement"
    assert choose_metric("auto", False, np.zeros((2, 1))).name == "nmse"
    assert choose_metric("auto", False, image).name == "nmse"
    assert choose_metric("psnr", False, image).name == "psnr"
    with pytest.raises(ValueError, match="needs outputs"):
        choose_metric("auto", True, image)
    with pytest.raises(ValueError, match="needs labels"):
        choose_metric("top1", False, classes)
    with pytest.raises(ValueError, match="expected auto, top1"):
        choose_metric("accuracy", True, classes)
