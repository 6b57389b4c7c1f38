"""The controller with scripted losses: when it advances, what it drops, and that a resumed one decides the same."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from pydantic import TypeAdapter

from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.settings import ReuseSetting
from adr_tvm.train.controller import Controller, ControllerState, LayerTimes
from adr_tvm.train.ladder import DENSE, Candidate, climb, grid
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.planned import ladder, make_controller
from adr_tvm.train.plateau import PlateauRule
from adr_tvm.train.profitability import PAPERS, Coefficients, bound_on_ratio, training_cost
from adr_tvm.train.stage import LayerReuse, variant
from adr_tvm.train.variants import most_bits

RULE = PlateauRule(smoothing=0.9, improvement=0.02, window=20, divergence=0.5)
CONV2 = ConvGeometry(16, 16, 64, 5, 5, 64, padding=(2, 2, 2, 2))
CONV1 = ConvGeometry(32, 32, 3, 5, 5, 64, padding=(2, 2, 2, 2))


def reuse(L: int, H: int, gradient: str = "averaged", granularity: str = "pixel") -> LayerReuse:
    return LayerReuse(ReuseSetting(granularity, L, H, scope="batch"), gradient)


def steps(*costs: float) -> tuple[Candidate, ...]:
    return tuple(Candidate(reuse(16, 4 + index), cost) for index, cost in enumerate(costs))


def run(controller: Controller, losses) -> list[int]:
    """The steps after which a stage began."""
    return [index + 1 for index, loss in enumerate(losses) if controller.observe(float(loss))]


def descent(count: int, rate: float, start: float = 2.0) -> np.ndarray:
    return start * (1 - rate) ** np.arange(count)


def test_plateau_advances_once_per_window():
    controller = Controller({"conv2": steps(0.2, 0.4, 0.6)}, rule=RULE)
    switches = run(controller, np.full(100, 1.0))
    # 10 steps settle, the 10th sets the reference, 20 more are stale: 30 steps a stage.
    assert switches == [30, 60]
    assert controller.finished and controller.stage["conv2"] == reuse(16, 6)


def test_steady_descent_stays_at_the_cheapest():
    controller = Controller({"conv2": steps(0.2, 0.4)}, rule=RULE)
    assert run(controller, descent(400, 0.003)) == []  # 6 % in a window
    assert controller.level == 0


def test_descent_slower_than_the_rule_advances():
    controller = Controller({"conv2": steps(0.2, 0.4)}, rule=RULE)
    assert run(controller, descent(200, 0.0005))  # 1 % in a window


def test_noise_around_a_descent_does_not_end_a_stage():
    noise = np.random.default_rng(0).normal(0, 0.05, 400)
    controller = Controller({"conv2": steps(0.2, 0.4)}, rule=RULE)
    assert run(controller, descent(400, 0.005) * (1 + noise)) == []


def test_noise_around_a_plateau_ends_it():
    noise = np.random.default_rng(0).normal(0, 0.05, 400)
    controller = Controller({"conv2": steps(0.2, 0.4)}, rule=RULE)
    assert run(controller, 1 + noise)


def test_divergence_advances_at_once():
    controller = Controller({"conv2": steps(0.2, 0.4)}, rule=RULE)
    switches = run(controller, np.r_[np.full(12, 1.0), np.full(20, 4.0)])
    assert switches and switches[0] < 18


def test_a_loss_that_is_not_finite_is_refused():
    controller = Controller({"conv2": steps(0.2)}, rule=RULE)
    with pytest.raises(ValueError, match="nan"):
        controller.observe(float("nan"))


def test_never_goes_back_and_the_last_stage_stays():
    controller = Controller({"conv2": steps(0.2, 0.4)}, rule=RULE)
    levels = []
    for loss in np.r_[np.full(60, 1.0), descent(100, 0.01), np.full(200, 0.3)]:
        controller.observe(float(loss))
        levels.append(controller.level)
    assert levels == sorted(levels) and levels[-1] == 1


@pytest.mark.parametrize("cut", [5, 29, 30, 31, 77])
@pytest.mark.parametrize("per_layer", [False, True])
def test_resumed_run_decides_the_same(cut, per_layer):
    losses = 1 + np.random.default_rng(1).normal(0, 0.1, 200)
    ladders = {"a": steps(0.2, 0.4), "b": steps(0.1, 0.3, 0.5)}
    whole = Controller(ladders, rule=RULE, per_layer=per_layer)
    expected = run(whole, losses)
    first = Controller(ladders, rule=RULE, per_layer=per_layer)
    before = run(first, losses[:cut])
    text = json.dumps(asdict(first.state))
    state = TypeAdapter(ControllerState).validate_json(text)
    second = Controller(ladders, rule=RULE, per_layer=per_layer, state=state)
    assert before + [cut + step for step in run(second, losses[cut:])] == expected
    assert second.state == whole.state


def test_all_layers_together_or_the_cheapest_step_first():
    ladders = {"small": steps(0.2, 0.3), "large": steps(0.2, 0.3, 0.4)}
    together = Controller(ladders, rule=RULE)
    run(together, np.full(30, 1.0))
    assert together.state.positions == {"small": 1, "large": 1}
    single = Controller(ladders, {"small": 1.0, "large": 50.0}, RULE, per_layer=True)
    positions = [dict(single.state.positions)]
    for loss in np.full(120, 1.0):
        if single.observe(float(loss)):
            positions.append(dict(single.state.positions))
    assert [tuple(each.values()) for each in positions] == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_deadline_begins_the_last_stage():
    controller = Controller({"conv2": steps(0.2, 0.4, 0.6)}, rule=RULE, deadline=50)
    assert run(controller, descent(100, 0.01)) == [50]
    assert controller.finished


def test_layer_that_does_not_pay_runs_dense_at_that_level():
    controller = Controller({"a": steps(0.2, 0.4), "b": steps(0.2, 0.4)}, rule=RULE)
    assert controller.unmeasured() == ["a", "b"]
    dropped = controller.record({"a": LayerTimes(1.0, 1.1), "b": LayerTimes(1.0, 0.3)})
    assert dropped == ["a"]
    assert controller.stage == {"a": None, "b": reuse(16, 4)}
    assert controller.unmeasured() == []
    run(controller, np.full(30, 1.0))
    assert controller.stage["a"] == reuse(16, 5)
    assert controller.unmeasured() == ["a", "b"]


def test_level_at_which_nothing_pays_is_left():
    controller = Controller({"a": steps(0.2, 0.4), "b": ()}, rule=RULE)
    controller.record({"a": LayerTimes(1.0, 1.0)})
    assert controller.stage["a"] == reuse(16, 5)
    controller.record({"a": LayerTimes(1.0, 0.98)})  # within the noise of timing
    assert controller.stage == {"a": None, "b": None} and controller.finished
    assert controller.state.switches == [(0, {"a": 1, "b": 0})]
    assert run(controller, np.full(100, 1.0)) == []


def test_per_layer_the_next_candidate_takes_the_place():
    controller = Controller({"a": steps(0.2, 0.4), "b": steps(0.2, 0.4)}, rule=RULE, per_layer=True)
    controller.record({"a": LayerTimes(1.0, 1.1), "b": LayerTimes(1.0, 0.3)})
    assert controller.state.positions == {"a": 1, "b": 0}
    assert controller.unmeasured() == ["a"]


def test_state_of_other_layers_is_refused():
    state = Controller({"a": steps(0.2)}).state
    with pytest.raises(ValueError, match="not of"):
        Controller({"b": steps(0.2)}, state=state)


# --- cost and ladders ---------------------------------------------------------------------------------


def test_papers_cost_by_hand():
    # (H / M + 3 r_c) / 3 with P = N (stride 1, padded) and 25 taps that share one hash.
    cost = training_cost(CONV2, reuse(16, 8), 128, r_c=0.01, coefficients=PAPERS)
    assert cost == pytest.approx((8 / 64 / 25 + 3 * 0.01) / 3)
    segment = training_cost(CONV2, reuse(10, 8, granularity="segment"), 128, r_c=0.01, coefficients=PAPERS)
    assert segment == pytest.approx((8 / 64 + 3 * 0.01) / 3)


def test_gather_and_input_gradient_count():
    c = Coefficients(hash=0, product=0, gather=2.0, vector=0, entry=0)
    assert training_cost(CONV2, reuse(16, 8), 128, coefficients=c) == pytest.approx(2 * 2 / 16 / 3)
    assert training_cost(CONV2, reuse(16, 8, "straight-through"), 128, coefficients=c) == pytest.approx(
        (2 * 2 / 16 + 1) / 3
    )
    assert training_cost(CONV1, reuse(3, 8), 128, coefficients=c, input_gradient=False) == pytest.approx(2 * 2 / 3 / 2)


def test_ratio_is_bounded_by_keys():
    assert bound_on_ratio(CONV2, reuse(16, 8), 128) == 256 / (128 * 256)
    assert bound_on_ratio(dense_geometry(1, 4096, 384), reuse(16, 8), 128) == 1.0


def test_coefficients_from_the_planner():
    from adr_tvm.planner.cost import TERMS

    c = Coefficients.from_seconds(TERMS)
    assert c.product == pytest.approx(1.25) and c.gather == pytest.approx(2.0)


def test_ladder_climbs_in_cost_and_fineness():
    costs = {}

    def cost(each: LayerReuse) -> float:
        costs[each] = training_cost(CONV2, each, 128)
        return costs[each]

    gradients = ("averaged", "straight-through")
    reuses = [each for gradient in gradients for each in grid(reuse(1, 1, gradient), (16, 8), (8, 10, 12))]
    chain = climb(reuses, cost, dense_last=True)
    assert chain[-1] is DENSE and len(chain) > 3
    assert chain[0].reuse == min(costs, key=costs.__getitem__)
    reusing = [each.reuse for each in chain[:-1]]
    assert [each.cost for each in chain] == sorted(each.cost for each in chain)
    for before, after in pairwise(reusing):
        assert after.setting.L <= before.setting.L and after.setting.H >= before.setting.H


def test_layers_that_cannot_pay_have_no_ladder():
    options = TrainOptions(reuse="adaptive")
    assert ladder(dense_geometry(1, 4096, 384), options) == ()
    assert [each.reuse and (each.reuse.setting.L, each.reuse.setting.H, each.reuse.forward_only) for each in
            ladder(CONV2, options)] == [(8, 10, True), (4, 10, True), None]  # fmt: skip
    averaged = ladder(CONV2, TrainOptions(reuse="adaptive", input_gradient="averaged", finish="reuse"))
    assert averaged and all(each.reuse.input_gradient == "averaged" for each in averaged)


def test_listed_stages_are_taken_as_they_are():
    options = TrainOptions(reuse="adaptive", stages="16x8,segment/10x12:straight-through,dense")
    found = ladder(CONV1, options)
    assert [each.reuse for each in found] == [
        reuse(3, 8),
        reuse(10, 12, "straight-through", "segment"),
        None,
    ]


def test_forward_only():
    options = TrainOptions(reuse="adaptive", stages="8x10:forward-only,dense", table="int8")
    (first, _), forward = ladder(CONV2, options), reuse(8, 10, "straight-through")
    assert first.reuse == replace(forward, setting=replace(forward.setting, table="int8"), forward_only=True)
    assert 2 / 3 < first.cost < 1


def test_zeros_are_skipped_with_reuse_unless_told():
    assert [TrainOptions(reuse=reuse).skips_zeros for reuse in ("off", "adaptive")] == [False, True]
    assert TrainOptions(skip_zeros=True).skips_zeros and TrainOptions(max_drop=0.1).skips_zeros
    assert not TrainOptions(reuse="adaptive", skip_zeros=False).skips_zeros
    assert "skip_zeros" not in TrainOptions().curve()


def test_strategies():
    assert make_controller({"conv2": CONV2}, TrainOptions(), 100).ladders == {}
    fixed = make_controller({"conv2": CONV2}, TrainOptions(reuse="fixed"), 100)
    assert fixed.finished and fixed.stage == {"conv2": replace(reuse(4, 10, "straight-through"), forward_only=True)}
    stream = make_controller({"conv2": CONV2}, TrainOptions(reuse="adaptive+stream"), 100)
    assert all(each.reuse.stream for each in stream.ladders["conv2"][:-1])
    skipped = make_controller({"conv1": CONV1, "conv2": CONV2}, TrainOptions(reuse="adaptive", only=["conv2"]), 100)
    assert list(skipped.ladders) == ["conv2"]


def test_bits_share_a_variant():
    ladders = {"a": steps(0.1, 0.2, 0.3)}
    most = most_bits(ladders.values())
    variants = {tuple(variant({"a": each.reuse}, most).items()) for each in ladders["a"]}
    assert variants == {(("a", reuse(16, 6)),)}
