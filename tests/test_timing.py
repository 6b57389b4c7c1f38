"""Fair orders, intervals of paired ratios, and the times of a whole network that the planner decides by."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from unittest import mock

import numpy as np
import pytest

from adr_tvm.planner.network_time import LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS, NetworkTimes, time_network
from adr_tvm.report.results import Timings
from adr_tvm.timing import fair_orders, median_at_least, take_turns, warm_up


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_orders_are_balanced(count):
    orders = fair_orders(range(count))
    cycle = len(orders)
    assert all(sorted(order) == list(range(count)) for order in orders)
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {cycle // count}
    neighbours = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(neighbours) == count * (count - 1) and len(set(neighbours.values())) <= 1


def test_warm_up_runs_at_least_once(monkeypatch):
    run = mock.Mock()
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)
    warm_up(run)
    assert run.call_count == 1
    monkeypatch.setattr(time, "perf_counter", itertools.count(step=0.002).__next__)
    warm_up(run)
    assert run.call_count == 1 + 3


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (4, 1), (5, 1), (8, 2), (11, 3), (31, 11)])  # of the sign test
def test_median_at_least(count, rank):
    assert median_at_least(list(range(count, 0, -1))) == rank


def test_median_at_least_holds_as_often_as_promised():
    values = np.random.default_rng(0).lognormal(sigma=1.5, size=(2000, LEAST_ROUNDS))  # median 1
    assert 0.01 < np.mean([median_at_least(row) > 1 for row in values]) < 0.05


def network_times(main, dense, timings=None) -> NetworkTimes:
    """What the planner makes of the seconds of neighbouring runs."""
    timings = Timings() if timings is None else timings
    return time_network(mock.Mock(reused={"conv": "setting"}), lambda _: {"main": main, "dense": dense}, timings)


def test_a_noisy_machine_does_not_hide_a_gain():
    """Load that comes and goes slows down most runs of one entry, and reuse is 1.1x faster."""
    dense = np.ones(MOST_ROUNDS)
    main = dense / 1.1
    main[: MOST_ROUNDS // 2 + 1] *= 2
    times = network_times(main, dense)
    assert np.median(main) > np.median(dense) and times.main > times.dense, "medians alone would revert"
    assert not times.slower(1.0)


def test_drift_cancels_out():
    drift = np.linspace(1, 3, LEAST_ROUNDS)
    times = network_times(1.05 * drift, drift)
    assert times.main == pytest.approx(1.05 * times.dense) and times.slower(1.0) and not times.slower(1.06)


def test_decisions_follow_from_timings():
    timings = Timings()
    first = network_times([1.2] * 11, [1.0] * 11, timings)
    assert len(timings) == 3
    assert network_times([9.0] * 11, [1.0] * 11, timings) == first


def test_rounds_of_fast_and_slow_networks(monkeypatch):
    for step, rounds in ((1e-5, MOST_ROUNDS), (10.0, LEAST_ROUNDS)):
        monkeypatch.setattr(time, "perf_counter", itertools.count(step=step).__next__)
        samples = take_turns(lambda _: 1.0, ["main", "dense"], LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS)
        assert {name: len(times) for name, times in samples.items()} == {"main": rounds, "dense": rounds}
