"""Predicted times follow from the clusters that a build for this machine counts; a plan is searched with them."""

from __future__ import annotations

import numpy as np
import pytest
from planner_networks import SLOW, TARGET, classifier, images, network, slow_machine  # noqa: F401

from adr_tvm.errors import DataError, UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.planner.core_cost import core_seconds, foreign_cost_model
from adr_tvm.planner.cost_file import FittedModel
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.predicted_clock import PredictedClock
from adr_tvm.planner.search import search
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS

pytestmark = pytest.mark.usefixtures("slow_machine")
GEOMETRY = ConvGeometry(8, 8, 16, 3, 3, 32, padding=(1, 1, 1, 1))
PIXEL = ReuseSetting("pixel", L=16, H=6, hash="gaussian")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return network(classifier(), tmp_path_factory.mktemp("classifier"))


def clock_of(net):
    return PredictedClock(SLOW, "a board", find_candidates(net.mod["main"], "main", CandidateRules()))


def test_units_that_run_dense_take_dense_time():
    clock = PredictedClock(SLOW, "a board", [])
    dense, vectors = SLOW.dense_seconds(GEOMETRY, 2), GEOMETRY.vectors(PIXEL)

    def seconds(*units):
        return clock.seconds(GEOMETRY, PIXEL, np.array(units, np.int32), 2)

    assert seconds([8, 1], [8, 1]) == SLOW.reuse_seconds(GEOMETRY, PIXEL, 8 / vectors, 2)
    assert seconds([0, 0], [0, 0]) == dense, "a look at some rows found nothing"
    counted = dense + SLOW.reuse_seconds(GEOMETRY, PIXEL, 0, 2)
    assert seconds([60, 0], [60, 0]) == counted, "the guard turned back"
    assert seconds([8, 1], [60, 0]) == pytest.approx((seconds([8, 1], [8, 1]) + counted) / 2)


def test_a_search(net):
    samples, timings = net.calibration(images(32)), Timings()
    options = SearchOptions(max_drop=0.5, granularity="pixel", L=4, H=6)
    outcome = search(net.mod, net.checked, CandidateRules(), samples, TARGET, options, timings, SLOW, clock_of(net))
    result = outcome.result
    assert outcome.plan.reused and result.predicted and result.cpu == "" and result.speedup > 1
    assert any("predicted, not measured: nothing ran on a board" in note for note in result.notes)
    for layer in result.reused:
        assert "predicted to be" in layer.reason and layer.time_reuse_ms == pytest.approx(layer.predicted_ms, rel=0.3)
    saved = sum(layer.time_dense_ms - layer.time_reuse_ms for layer in result.reused)
    assert result.dense_ms - result.reuse_ms == pytest.approx(saved, rel=0.3), "other images are counted"
    again = search(net.mod, net.checked, CandidateRules(), samples, TARGET, options, Timings(), SLOW, clock_of(net))
    assert again.plan.layers == outcome.plan.layers and again.result.layers == result.layers


def test_without_data_lossless_reuse_costs_nothing(net):
    outcome = search(net.mod, net.checked, CandidateRules(), None, TARGET, SearchOptions(), clock=clock_of(net))
    assert outcome.plan.reused and outcome.result.reuse_ms == outcome.result.dense_ms


def test_the_model_of_a_board(tmp_path):
    entry = TARGETS["rpi4"]
    estimate = foreign_cost_model(entry, None, 4, 4)
    assert estimate.seconds == core_seconds(entry.core) and estimate.threads == 4
    assert estimate.source == "estimated for cortex-a72 at 1.5 GHz"
    path = tmp_path / "cost.json"
    FittedModel("some board", 4, {name: 1e-9 for name in estimate.seconds}).save(path)
    fitted = foreign_cost_model(entry, path, 2, 4)
    assert (fitted.source, fitted.threads) == ("fitted to some board", 2)
    with pytest.raises(UsageError, match="does not exist"):
        foreign_cost_model(entry, tmp_path / "none.json", 4, 4)
    FittedModel("some board", 4, {"dense flops": 1e-9}).save(path)
    with pytest.raises(DataError, match="another version"):
        foreign_cost_model(entry, path, 4, 4)
