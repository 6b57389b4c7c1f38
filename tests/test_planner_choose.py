"""The planner's parts that need no network: choice, cost model, grid of settings, guard, time budget."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.planner.choose import Option, hull, nested_plans, pareto
from adr_tvm.planner.cost import reuse_macs
from adr_tvm.planner.measure import cluster_limit
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.settings_grid import settings_grid
from adr_tvm.planner.time_budget import TimeBudget
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting

CONV = ConvGeometry(14, 14, 24, 3, 3, 32, padding=(1, 1, 1, 1))

# Whole numbers: sums and slopes of ties are then exact.
whole = st.integers(-3, 30).map(float)


@st.composite
def option_lists(draw, most=5):
    """Options of one layer; each has a setting of its own."""
    pairs = draw(st.lists(st.tuples(whole, st.integers(0, 30).map(float)), max_size=most))
    return [Option(ReuseSetting(H=1 + i), saved, error) for i, (saved, error) in enumerate(pairs)]


layers = st.lists(option_lists(), min_size=1, max_size=3).map(lambda o: {f"layer{i}": each for i, each in enumerate(o)})


def total(plan) -> tuple[float, float]:
    return sum(o.saved for o in plan.values()), sum(o.error for o in plan.values())


@given(option_lists(8))
def test_hull_is_concave_and_on_top(options):
    points = [(0.0, 0.0), *((o.error, o.saved) for o in hull(options))]
    for (e0, s0), (e1, s1) in itertools.pairwise(points):
        assert s1 > s0 and e1 >= e0
    slopes = [math.inf if e1 == e0 else (s1 - s0) / (e1 - e0) for (e0, s0), (e1, s1) in itertools.pairwise(points)]
    assert all(a > b for a, b in itertools.pairwise(slopes))
    for o in options:  # no option lies above the hull
        left = max((p for p in points if p[0] <= o.error), key=lambda p: (p[0], p[1]))
        right = [p for p in points if p[0] > o.error]
        highest = left[1]
        if right:
            share = (o.error - left[0]) / (right[0][0] - left[0])
            highest += share * (right[0][1] - left[1])
        assert o.saved <= highest + 1e-9


def test_errors_that_are_not_finite():
    good, bad = Option(ReuseSetting(H=4), 1.0, 0.1), Option(ReuseSetting(H=3), 9.0, math.inf)
    none = Option(ReuseSetting(), 99.0, math.nan)
    assert hull([none, bad, Option(ReuseSetting(H=2), 8.0, math.inf), good]) == [good, bad]
    plans = nested_plans({"a": [bad], "b": [bad, good]})
    assert plans == [{}, {"b": good}, {"b": good, "a": bad}, {"b": bad, "a": bad}]


@given(layers)
def test_plans_are_nested(options):
    plans = nested_plans(options)
    assert plans[0] == {}
    for before, after in itertools.pairwise(plans):
        assert set(before) <= set(after)
        assert sum(before.get(layer) != option for layer, option in after.items()) == 1
        assert total(after)[0] > total(before)[0] and total(after)[1] >= total(before)[1]
    fastest = sum(max([0.0, *(o.saved for o in each)]) for each in options.values())
    assert total(plans[-1])[0] == fastest


@given(layers)
def test_plans_are_the_best_of_their_budget(options):
    """Of all plans with no more error than one of the hulls' sequence, none saves more (brute force).

    Steps that add no error are taken one by one: of plans with equal errors the last counts.
    """
    every = itertools.product(*[[None, *each] for each in options.values()])
    brute = [total({i: o for i, o in enumerate(choice) if o is not None}) for choice in every]
    reached = {
        error: saved for saved, error in map(total, nested_plans({k: hull(each) for k, each in options.items()}))
    }
    for error, saved in reached.items():
        assert saved >= max(s for s, e in brute if e <= error) - 1e-9


def test_smaller_steps_lie_between_those_of_the_hull():
    """Where the step to the fastest setting breaks the budget, one that is below the hull may keep it."""
    small, dominated, large = (
        Option(ReuseSetting(H=12), 1.0, 2.0),
        Option(ReuseSetting(H=10), 0.5, 3.0),
        Option(ReuseSetting(H=8), 9.0, 4.0),
    )
    assert hull([small, dominated, large]) == [large]
    assert nested_plans({"a": [large, dominated, small]}) == [{}, {"a": small}, {"a": large}]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_pareto(points):
    front = [p for p, kept in zip(points, pareto(points), strict=True) if kept]
    for point in points:
        assert any(a <= point[0] and b <= point[1] for a, b in front)
    for a, b in itertools.permutations(set(front), 2):
        assert not (a[0] <= b[0] and a[1] <= b[1])


def test_reuse_macs():
    # 3 segments of 8 channels over 14 x 14 pixels, hashed with 6 bits, half of them with products over 9 taps.
    assert reuse_macs(CONV, ReuseSetting(L=8, H=6), 0.5) == 196 * 24 * 6 + 196 * 24 * 9 * 32 // 2
    assert reuse_macs(CONV, ReuseSetting("row", hash="exact"), 1.0) == CONV.macs


def kinds(grid) -> set[tuple[str, str]]:
    return {(s.granularity, s.hash) for s in grid}


def test_grid_by_default():
    grid = settings_grid(CONV, SearchOptions())
    assert kinds(grid) == {("row", "exact"), ("row", "pca"), ("pixel", "pca"), ("segment", "pca")}
    assert grid[0].lossless and not any(s.lossless for s in grid[1:])
    assert len(set(grid)) == len(grid) and {s.scope for s in grid} == {"image"}
    assert {s.L for s in grid if s.granularity == "pixel"} == {4, 8, 16, 24}, "no vector is longer than the channels"
    assert {s.L for s in grid if s.granularity == "row" and s.hash == "pca"} == {216}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"lossless": True}, {("row", "exact")}),
        ({"hash": "exact"}, {("row", "exact"), ("pixel", "exact")}),
        ({"hash": "gaussian"}, {("row", "gaussian"), ("pixel", "gaussian"), ("segment", "gaussian")}),
        ({"granularity": "segment"}, {("segment", "pca")}),
        ({"granularity": "row"}, {("row", "exact"), ("row", "pca")}),
        ({"granularity": "row", "hash": "exact"}, {("row", "exact")}),
        ({"granularity": "segment", "hash": "exact"}, {("segment", "exact")}),
        ({"L": 5}, {("pixel", "pca"), ("segment", "pca")}),
        ({"H": 9}, {("row", "pca"), ("pixel", "pca"), ("segment", "pca")}),
    ],
)
def test_grid_within_the_users_limits(options, found):
    grid = settings_grid(CONV, SearchOptions(**options, scope="batch"))
    assert kinds(grid) == found and {s.scope for s in grid} == {"batch"}
    if "L" in options:
        assert {s.L for s in grid} == {5}
    if "H" in options:
        assert {s.H for s in grid} == {9}


def test_a_closer_look():
    """More lengths and bits, but no more keys than could leave two vectors together."""
    coarse, fine = (settings_grid(CONV, SearchOptions(), 128, each) for each in (False, True))
    assert set(coarse) < set(fine)
    assert max(s.H for s in fine if s.granularity == "pixel") == 12, "196 pixels"
    batch = settings_grid(CONV, SearchOptions(scope="batch"), 128, True)
    assert max(s.H for s in batch if s.granularity == "pixel") == 20


def test_longer_than_the_channels():
    """L > C: the setting is kept as asked for, its vectors end with the channels."""
    (setting,) = settings_grid(CONV, SearchOptions(L=500, H=4, granularity="pixel"))
    assert (setting.L, CONV.vector_length(setting), CONV.segments(setting)) == (500, 24, 1)


def test_rows_too_long_to_hash():
    wide = ConvGeometry(7, 7, 512, 3, 3, 512, padding=(1, 1, 1, 1))
    assert kinds(settings_grid(wide, SearchOptions(granularity="row"))) == {("row", "exact")}


def test_grid_of_a_dense_layer():
    grid = settings_grid(dense_geometry(49, 96, 64), SearchOptions())
    assert {s.L for s in grid if s.granularity == "pixel"} == {4, 8, 16, 32}


@given(
    images=st.integers(1, 8),
    clusters=st.integers(1, 400),
    reuse=st.floats(0.01, 2),
    dense=st.floats(0.01, 2),
    setting=st.builds(
        ReuseSetting,
        granularity=st.sampled_from(["pixel", "segment", "row"]),
        L=st.integers(1, 30),
        scope=st.sampled_from(["image", "batch"]),
    ),
)
def test_cluster_limit(images, clusters, reuse, dense, setting):
    limit = cluster_limit(CONV, setting, images, clusters, reuse, dense)
    assert limit >= 0
    if reuse <= 0.95 * dense:
        assert limit >= clusters, "what was measured to pay is not stopped"
    else:
        assert limit <= clusters
    units = images if setting.scope == "image" else 1
    taps = 9 if setting.granularity == "pixel" else 1
    a_cluster = dense * CONV.vector_length(setting) * taps * CONV.M / (CONV.macs * images)
    if limit > 0:
        at_limit = reuse + units * (limit - clusters) * a_cluster
        assert at_limit <= 0.95 * dense + 1e-9, "at the limit the layer is still faster"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_no_time_budget():
    timings = Timings()
    budget = TimeBudget(None, timings, Clock())
    assert not budget.limited and budget.left("a", 0.5) == math.inf
    assert budget.images("b", 0.5, 3, 0.0, 256) == 256 and len(timings) == 0
    assert budget.seconds_per_image(lambda: None, 4) == 0.0


def test_time_budget():
    clock, timings = Clock(), Timings()
    budget = TimeBudget(10, timings, clock)
    clock.now += 3

    def run():
        clock.now += 2

    assert budget.seconds_per_image(run, 4) == 0.5
    assert budget.left("a", 0.8) == pytest.approx(1)
    assert budget.images("b", 1.0, 3, 0.5, 256) == 2 and budget.images("c", 1.0, 3, 0.5, 1) == 1
    clock.now += 100
    assert budget.left("d", 1.0) < 0 and budget.images("e", 1.0, 1, 0.5, 256) == 1
    assert budget.left("a", 0.8) == pytest.approx(1), "a step's time is read once"
    again = TimeBudget(10, timings, Clock())
    assert again.left("d", 1.0) == budget.left("d", 1.0) and again.images("b", 1.0, 3, 0.5, 256) == 2
