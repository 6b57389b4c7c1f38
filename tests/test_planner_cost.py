"""The cost model: what it predicts, its file, and how it is fitted."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from adr_tvm.bench import fit_machine as fitting
from adr_tvm.bench.fit_machine import Case, cases, fit_machine, fitted_model
from adr_tvm.bench.least_squares import nonnegative_least_squares
from adr_tvm.deploy.processor import processor_name
from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.options import CompileOptions
from adr_tvm.planner.cost import TERMS, CostModel, default_seconds, dense_work, reuse_work
from adr_tvm.planner.cost_file import FittedModel, find_cost_model, machine_file, record, recorded
from adr_tvm.report.results import Timings
from adr_tvm.settings import TABLES, ReuseSetting

OTHER = {name: 2 * value for name, value in TERMS.items()}
CONV = ConvGeometry(14, 14, 24, 3, 3, 32, padding=(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adr_tvm"


@pytest.mark.parametrize("granularity", ["pixel", "segment", "row"])
def test_cost_grows_with_clusters_and_images(granularity):
    cost, setting = CostModel(), ReuseSetting(granularity, L=8)
    times = [cost.reuse_seconds(CONV, setting, r_c, 4) for r_c in (0, 0.1, 0.5, 1)]
    assert times == sorted(set(times))
    assert cost.reuse_seconds(CONV, setting, 0.1, 2) < cost.reuse_seconds(CONV, setting, 0.1, 3)
    one_more = cost.reuse_seconds(CONV, setting, 2 / CONV.vectors(setting), 1)
    one_more -= cost.reuse_seconds(CONV, setting, 1 / CONV.vectors(setting), 1)
    assert one_more == pytest.approx(cost.cluster_seconds(CONV, setting))


def test_cost_of_pixel_vectors_is_less_than_of_segments():
    """Hashing a pixel once in place of once for each of its taps."""
    cost = CostModel()
    pixel, segment = (cost.reuse_seconds(CONV, ReuseSetting(g, L=9), 0, 1) for g in ("pixel", "segment"))
    assert pixel < segment


def test_threads_share_what_can_be_shared():
    """Segments are numbered by a thread each: three of them keep two threads busy as long as four."""
    one, two = CostModel(threads=1), CostModel(threads=2)
    assert two.dense_seconds(CONV, 100) < 0.6 * one.dense_seconds(CONV, 100)
    numbered = [reuse_work(CONV, ReuseSetting(L=L), 0, 1, threads)["vectors"] for L in (8, 6) for threads in (1, 2)]
    assert numbered == [196 * 3, 196 * 2, 196 * 4, 196 * 2]


def test_wider_vectors_are_faster():
    wide, narrow = CostModel(default_seconds(16)), CostModel(default_seconds(8))
    assert narrow.dense_seconds(CONV, 100) > 1.5 * wide.dense_seconds(CONV, 100)


def test_every_term_is_measured_and_every_work_has_a_coefficient():
    work = [
        dense_work(c.geometry, c.images)
        if c.setting is None
        else reuse_work(c.geometry, c.setting, 2000 * c.images, c.images)
        for c in cases()
    ]
    assert {name for each in work for name, amount in each.items() if amount} == set(TERMS)
    assert {c.setting.table for c in cases() if c.setting} == set(TABLES)
    assert len({c.name for c in cases()}) == len(cases())


def test_nonnegative_least_squares():
    rng = np.random.default_rng(0)
    rows, truth = rng.random((20, 4)) * [1.0, 1e6, 1e-6, 1.0], np.array([2.0, 3e-6, 4e6, 0.0])
    np.testing.assert_allclose(nonnegative_least_squares(rows, rows @ truth), truth, rtol=1e-6, atol=1e-9)
    # Without the bound the second would be -1; with it the first is what is best alone.
    found = nonnegative_least_squares(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(found, [0.5, 0.0])
    np.testing.assert_array_equal(nonnegative_least_squares(np.zeros((3, 2)), np.ones(3)), [0, 0])
    for _ in range(50):  # the gradient of what is 0 points up, that of the rest is 0
        a, b = rng.standard_normal((8, 5)), rng.standard_normal(8)
        x = nonnegative_least_squares(a, b)
        gradient = a.T @ (a @ x - b)
        assert (x >= 0).all() and (gradient > -1e-8).all() and np.abs(gradient[x > 0]).max(initial=0) < 1e-8


def synthetic(truth: CostModel, disturbed: tuple[int, ...] = ()) -> list[tuple[Case, float, float]]:
    """Cases with the times that a model says; those of some are tripled."""
    found = []
    for index, case in enumerate(cases()):
        clusters = float(case.prototypes * 3)
        if case.setting is None:
            seconds = truth.dense_seconds(case.geometry, case.images)
        else:
            r_c = clusters / (case.images * case.geometry.vectors(case.setting))
            seconds = truth.reuse_seconds(case.geometry, case.setting, r_c, case.images)
        found.append((case, clusters, seconds * (3 if index in disturbed else 1)))
    return found


def test_fit_finds_a_machine_of_which_some_times_are_disturbed():
    truth = CostModel({name: 3 * value for name, value in TERMS.items()}, threads=2)
    fitted = fitted_model(synthetic(truth, disturbed=(3, 12)), 2)
    errors = [abs(k.predicted / k.measured - 1) for k in fitted.kernels]
    assert sorted(errors)[-3] < 0.05 and fitted.threads == 2
    model = CostModel(fitted.seconds, 2)
    for setting in (None, ReuseSetting(L=8, H=8), ReuseSetting("row", H=6)):
        g = ConvGeometry(28, 28, 64, 3, 3, 96, padding=(1, 1, 1, 1))
        if setting is None:
            pair = model.dense_seconds(g, 1), truth.dense_seconds(g, 1)
        else:
            pair = model.reuse_seconds(g, setting, 0.1, 1), truth.reuse_seconds(g, setting, 0.1, 1)
        assert pair[0] == pytest.approx(pair[1], rel=0.1)


def test_fit_machine_on_two_kernels(cache):
    """The structure, never the times."""
    some = [Case(dense_geometry(8, 16, 16)), Case(CONV, ReuseSetting(L=8, H=4), 4)]
    fitted, path = fit_machine(None, some)
    assert path.parent == cache and path.name.endswith(f"-{fitted.threads}-threads.json")
    assert list(cache.iterdir()) == [path]
    assert FittedModel.load(path) == fitted and fitted.cpu == processor_name()
    assert [k.measured > 0 for k in fitted.kernels] == [True, True]
    found = find_cost_model(None, fitted.threads, 16)
    assert found.seconds == fitted.seconds and "fitted to" in found.source


def model(**changes) -> FittedModel:
    return replace(FittedModel(processor_name(), 1, OTHER), **changes)


def test_the_default_is_this_machines(cache, caplog):
    caplog.set_level(logging.INFO, "adr_tvm")
    found = find_cost_model(None, 1, 8)
    assert found == CostModel(default_seconds(8), 1, "defaults for vectors of 8 floats")
    assert "adr-bench --fit-machine" in caplog.text
    model().save(machine_file(1))
    assert find_cost_model(None, 1, 8).seconds == OTHER
    assert str(cache) in caplog.text
    assert find_cost_model(None, 2, 8).source.startswith("defaults"), "other threads, another file"


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no format version"),
        ({"version": 99}, "use a newer adr-tvm"),
        ({"seconds": {"dense flops": -1.0}}, "expected 0 to 1"),
        ({"seconds": {}}, "needs threads and coefficients"),
        ({"seconds": dict.fromkeys(TERMS, 0.0)}, "no work takes any time"),
        ({"seconds": {"dense flops": 1e-12}}, "is of another version of adr_tvm"),
        ({"threads": 0}, "needs threads and coefficients"),
        ({"more": 1}, "more"),
        ({"cpu": "Z80"}, "is for 'Z80', this is"),
    ],
)
def test_a_file_that_is_no_good(cache, tmp_path, caplog, content, warning):
    path = tmp_path / "model.json"
    model().save(path)
    text = content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    path.write_text(text)
    found = find_cost_model(path, 1, 16)
    assert found.seconds == default_seconds(16)
    assert warning in caplog.text and "defaults" in caplog.text


def test_a_file_that_is_there_no_more(tmp_path):
    with pytest.raises(UsageError, match=r"--cost-model .* does not exist"):
        find_cost_model(tmp_path / "none.json", 1, 16)


def test_a_given_plan_needs_no_model():
    with pytest.raises(UsageError, match="--cost-model cannot go with --plan"):
        CompileOptions(plan="plan.json", cost_model="model.json")


def test_a_file_for_other_threads_or_versions_is_used_with_a_warning(tmp_path, caplog):
    model(threads=3, adr_version="0.0.1").save(tmp_path / "m.json")
    found = find_cost_model(tmp_path / "m.json", 2, 16)
    assert found.threads == 2 and found.seconds == OTHER
    assert "fitted with threads: 3, this run has 2" in caplog.text and "fitted with adr_tvm 0.0.1" in caplog.text


def test_hash_is_of_what_predictions_depend_on():
    one = CostModel({"call": 1.0, "bits": 2.0}, 1, "here")
    assert one.sha256 == CostModel({"bits": 2.0, "call": 1.0}, 1, "there").sha256
    assert len({one.sha256, replace(one, threads=2).sha256, replace(one, seconds={"call": 1.0}).sha256}) == 3


def test_timings_hold_the_model_they_were_taken_with(tmp_path):
    timings, cost = Timings(), CostModel(TERMS | {"bits": 0.0}, 2)
    assert recorded(timings, 2) is None and recorded(None, 2) is None
    record(cost, timings)
    timings.save(tmp_path / "timings.json")
    again = recorded(Timings.load(tmp_path / "timings.json"), 2)
    assert again.seconds == {name: value for name, value in cost.seconds.items() if value}
    assert again.dense_seconds(CONV, 3) == cost.dense_seconds(CONV, 3)


def test_saving_leaves_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    model().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UsageError, match="No space left"):
        model(threads=2).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_undisturbed_time_is_the_lower_quartile():
    assert fitting._undisturbed([5.0, 1.0, 2.0, 9.0, 7.0, 8.0, 6.0, 3.0]) == 3.0
    assert fitting._undisturbed([4.0]) == 4.0
