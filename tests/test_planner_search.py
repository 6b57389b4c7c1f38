"""The search end to end on tiny networks and a machine on paper: plans within budgets, back-off, odd inputs."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model, weights_of
from planner_networks import (  # noqa: F401
    SLOW,
    TARGET,
    PaperTimes,
    classifier,
    image_to_image,
    images,
    network,
    slow_machine,
)
from tvm import relax

from adr_tvm.errors import DataError
from adr_tvm.passes.mark_candidates import CandidateRules
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.clock import MeasuredClock
from adr_tvm.planner.findings import Findings
from adr_tvm.planner.layer_search import LayerSearch
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.network_time import NetworkTimes
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.search import _reverted
from adr_tvm.report.results import Timings

pytestmark = pytest.mark.usefixtures("slow_machine")
NARROW = {"granularity": "pixel", "L": 4, "H": 6}  # a kernel a layer, and one with gain where that may help


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return network(classifier(), tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def image_net(tmp_path_factory):
    return network(image_to_image(), tmp_path_factory.mktemp("image"))


def run(outcome, *inputs, entry="main"):
    machine = relax.VirtualMachine(outcome.executable, tvm.cpu())
    found = machine[entry](*map(tvm.runtime.tensor, inputs))
    return found.numpy() if hasattr(found, "numpy") else [each.numpy() for each in found]


def agreement(outcome, x) -> float:
    return float(np.mean(run(outcome, x).argmax(1) == run(outcome, x, entry="dense").argmax(1)))


def held_back(net, data, seed=0) -> np.ndarray:
    return np.concatenate([inputs["x"] for inputs, _ in net.calibration(data).split(seed)[1]])


def reasons(outcome) -> dict[str, str]:
    return {name: layer.reason for name, layer in outcome.plan.layers.items()}


def test_within_the_budget_on_held_back_images(net):
    data = images(64)
    outcome = net.search(data, PaperTimes(), max_drop=0.1, **NARROW)
    assert set(outcome.plan.reused) == {"conv1", "conv2"}
    assert outcome.result.metric == "agreement" and outcome.result.n_images == 32
    assert outcome.result.drop <= outcome.result.bound <= 0.1
    assert 1 - agreement(outcome, held_back(net, data)) <= outcome.result.bound
    assert outcome.result.speedup == pytest.approx(1 / 0.6)
    for name in ("conv1", "conv2"):
        assert "x faster inside the network" in reasons(outcome)[name]
        assert outcome.plan.reused[name].max_clusters > 0
    assert "one row per image" in reasons(outcome)["fc"]
    assert outcome.result.cost_model == "defaults" and outcome.result.cost_model_sha256 == SLOW.sha256
    for layer in outcome.result.layers[:2]:
        assert all(c.predicted_ms > 0 for c in layer.candidates) and layer.predicted_dense_ms > layer.predicted_ms
        assert sum(c.chosen for c in layer.candidates) == 1 and any(c.pareto for c in layer.candidates)
        assert 0 < layer.r_c <= 1 and layer.output_error >= 0 and layer.macs_reuse < layer.macs_dense


def test_too_tight_a_budget(image_net):
    """Budget 0: no bound on an error is 0, so only lossless layers may reuse."""
    outcome = image_net.search(images(40, noise=0), PaperTimes(), max_drop=0.0, hash="exact")
    assert [setting.lossless for setting in outcome.plan.reused.values()] == [True]
    assert {c.setting.granularity for c in outcome.result.layers[0].candidates} == {"row", "pixel"}
    x = images(4, noise=0)
    np.testing.assert_array_equal(run(outcome, x), run(outcome, x, entry="dense"))
    assert outcome.result.images_needed is None and outcome.result.drop is None


def test_too_few_images(net):
    outcome = net.search(images(12), PaperTimes(), max_drop=0.1, **NARROW)
    assert not outcome.plan.reused
    needed = outcome.result.images_needed
    assert needed is not None and 20 <= needed <= 60  # 22 without a miss: ln(10) / 0.1
    assert "6 held-back images do not show" in reasons(outcome)["conv1"]
    assert any(f"about {needed} held-back images" in note for note in outcome.result.notes)
    x = images(3)
    np.testing.assert_array_equal(run(outcome, x), run(outcome, x, entry="dense"))


def test_data_without_repetition(image_net):
    """White noise: there is no setting whose error fits the budget."""
    noise = np.random.default_rng(0).standard_normal((32, 4, 8, 8)).astype("float32")
    outcome = image_net.search(noise, PaperTimes(), max_drop=0.01, **NARROW)
    assert not outcome.plan.reused and "accuracy budget" in reasons(outcome)["conv"]
    assert outcome.result.layers[0].candidates[0].error > 0.01


@pytest.mark.parametrize("last", range(7))
@pytest.mark.parametrize("limit", range(7))
def test_back_off_ends_at_the_furthest_plan_that_is_shown(last, limit):
    """Steps up to ``limit`` keep the budget; verification starts at the last one."""
    found = LayerSearch.__new__(LayerSearch)
    found.options, found.metric, found.findings = SearchOptions(), "nmse", Findings([], {})
    tried = []

    def drop(chosen, _data):
        tried.append(len(chosen))
        kept = len(chosen) <= limit
        return mock.Mock(within=lambda _: kept, images_needed=lambda _: 100 * len(chosen), step=len(chosen))

    found._drop = drop
    lossy = mock.Mock()
    lossy.short.setting.lossless = False
    found._measured_of = lambda plan: dict.fromkeys(plan, lossy)
    plans = [{str(layer): None for layer in range(step)} for step in range(last + 1)]
    reached, metric = found._furthest_shown(plans, set(), None)
    assert reached == metric.step == min(last, limit)
    assert tried[0] == last and len(tried) <= 4
    expected = 100 * (limit + 1) if last > limit else None
    assert found.findings.images_needed == expected, "of the first plan that does not pass"


def settings(layer) -> set[tuple]:
    return {(c.setting.L, c.setting.H, c.setting.gain, c.setting.table) for c in layer.candidates}


def test_cheaper_tables_are_tried_around_the_choice(image_net):
    """Only types that are predicted to be faster, and taken where they measure faster within the budget."""
    fast_int8 = replace(SLOW, seconds=SLOW.seconds | {"adds int8": 0.0})
    outcome = image_net.search(images(32), PaperTimes(), max_drop=0.05, cost=fast_int8, **NARROW)
    (layer,) = outcome.result.layers
    assert settings(layer) == {(4, 6, False, "float32"), (4, 6, True, "float32"), (4, 6, False, "int8")}
    assert outcome.plan.reused["conv"].table == "int8" and 0 < outcome.result.drop < 0.05
    assert outcome.result.speedup == pytest.approx(1 / 0.6)


def test_a_closer_look_where_the_budget_ends(image_net):
    """The shortlist takes few settings; of those between, the search tries some near the choice."""
    with mock.patch("adr_tvm.planner.shortlist.MOST_SETTINGS", 2):
        outcome = image_net.search(images(32, 0.3), PaperTimes(), max_drop=0.02, granularity="pixel", L=4)
    (layer,) = outcome.result.layers
    plain = sorted(c.setting.H for c in layer.candidates if not c.setting.gain and not c.setting.lossless)
    assert plain[0] < plain[1] < plain[-1], "neither the least nor the most accurate"
    chosen = outcome.plan.reused["conv"].H
    assert plain[0] < chosen, "the fastest breaks the budget"
    assert outcome.result.bound <= 0.02


def test_labels(net):
    data = images(64)
    labels = np.random.default_rng(0).integers(0, 5, 64)
    outcome = net.search({"x": data, "label": labels}, PaperTimes(), labels_name="label", max_drop=0.1, **NARROW)
    assert outcome.result.metric == "top1" and outcome.plan.reused
    assert outcome.result.bound <= 0.1


def test_top1_without_labels(net):
    with pytest.raises(DataError, match="labels"):
        net.search(images(8), PaperTimes(), metric="top1", **NARROW)


def test_nmse(image_net):
    outcome = image_net.search(images(32), PaperTimes(), max_drop=0.05, **NARROW)
    assert outcome.result.metric == "nmse" and set(outcome.plan.reused) == {"conv"}
    x = images(32)
    y, r = run(outcome, x), run(outcome, x, entry="dense")
    nmse = ((y - r) ** 2).sum() / ((r - r.mean((0, 2, 3), keepdims=True)) ** 2).sum()
    assert 0 < nmse < 0.05 and outcome.result.drop == pytest.approx(nmse, rel=0.5)


@pytest.mark.parametrize(("floor", "reused"), [(20, True), (90, False)])
def test_psnr(image_net, floor, reused):
    outcome = image_net.search(images(32), PaperTimes(), metric="psnr", min_psnr=floor, **NARROW)
    assert bool(outcome.plan.reused) == reused
    if reused:
        assert outcome.result.drop >= outcome.result.bound >= floor


def test_agreement_of_images(image_net):
    with pytest.raises(DataError, match="nmse or psnr"):
        image_net.search(images(8), PaperTimes(), metric="agreement")


@pytest.mark.parametrize(
    "options",
    [
        {"L": 3, "H": 7},
        {"granularity": "segment", "L": 9, "H": 5},
        {"granularity": "segment", "hash": "gaussian", "H": 5, "scope": "batch"},
        {"granularity": "row", "H": 6, "scope": "batch"},
        {"hash": "exact", "granularity": "pixel", "L": 100},
    ],
    ids=str,
)
def test_forced_settings(image_net, options):
    outcome = image_net.search(images(32, noise=0), PaperTimes(), max_drop=0.5, **options)
    (setting,) = outcome.plan.reused.values()
    assert {name: getattr(setting, name) for name in options} == options or setting.lossless
    batch = options.get("scope") == "batch"
    assert any("depends on the other images" in note for note in outcome.result.notes) == batch
    (layer,) = outcome.result.layers
    assert layer.clusters <= layer.vectors, "both are of one image"


def test_dense_layers_reuse_across_a_batch(net):
    """Rows of one image cannot repeat, those of a batch can."""
    data = images(64, noise=0)[np.arange(64) % 4]
    only = CandidateRules(only=["fc"])
    outcome = net.search(data, PaperTimes(), only, scope="batch", lossless=True, batch_size=16)
    assert outcome.plan.reused["fc"].lossless and outcome.plan.reused["fc"].scope == "batch"
    assert outcome.result.layers[-1].r_c <= 0.25


def test_nothing_is_faster(net):
    outcome = net.search(images(16), PaperTimes(reuse=1.2), max_drop=0.5, **NARROW)
    assert not outcome.plan.reused and "measured no gain: at best 1.2" in reasons(outcome)["conv1"]
    assert outcome.result.speedup == 1.0


def test_nothing_is_faster_inside_the_network(net):
    outcome = net.search(images(64), PaperTimes(in_network=0.97), max_drop=0.5, **NARROW)
    assert not outcome.plan.reused and "no gain inside the network: 0.97x" in reasons(outcome)["conv1"]
    assert outcome.result.drop is None, "what is told is that of the plan that was written"


def test_the_network_is_slower_after_all(net):
    outcome = net.search(images(64), PaperTimes(network=1.5), max_drop=0.5, **NARROW)
    assert not outcome.plan.reused and "reverted: the whole network measured 1.50x" in reasons(outcome)["conv1"]
    assert "main" not in [c.setting for layer in outcome.result.layers for c in layer.candidates]


def test_accuracy_is_not_spent_where_no_gain_is_seen(net):
    """Not even where the network may, for all that is certain, be faster."""
    outcome = net.search(images(64), PaperTimes(network=1.02, network_at_least=0.97), max_drop=0.5, **NARROW)
    assert not outcome.plan.reused
    outcome = net.search(images(64), PaperTimes(network=0.99, network_at_least=0.97), max_drop=0.5, **NARROW)
    assert set(outcome.plan.reused) == {"conv1", "conv2"}
    assert outcome.result.speedup == pytest.approx(1 / 0.99)


@pytest.mark.parametrize(
    ("times", "lossless", "on_data", "reverted"),
    [
        ((1.0, 0.98, 0.97), True, True, True),  # certain: not even 5 % are gained
        ((1.0, 0.98, 0.94), True, True, False),
        ((1.0, 1.04, 1.03), True, False, False),  # what looking costs where nothing repeats
        ((1.0, 1.09, 1.06), True, False, True),
        ((1.0, 1.09, 1.04), True, False, False),
        ((1.0, 0.97, 0.96), False, True, False),
        ((1.0, 1.03, 1.01), False, True, True),
    ],
)
def test_what_is_reverted(times, lossless, on_data, reverted):
    assert _reverted(NetworkTimes(*times), lossless, on_data) == reverted


def test_rules(net):
    outcome = net.search(images(64), PaperTimes(), rules=CandidateRules(skip=["conv1"]), max_drop=0.5, **NARROW)
    assert set(outcome.plan.reused) == {"conv2"} and "--skip conv1" in reasons(outcome)["conv1"]


def test_nothing_is_a_candidate(net):
    outcome = net.search(images(16), PaperTimes(), rules=CandidateRules(skip=["."]))
    assert not outcome.plan.reused and outcome.result.dense_ms == 1000.0
    assert run(outcome, images(1)).shape == (1, 5)


def test_no_layers_at_all(tmp_path):
    model = make_model([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": ["N", 3]}, {"y": ["N", 3]})
    found = network(model, tmp_path)
    outcome = found.search(np.ones((4, 3), "float32"), PaperTimes())
    assert outcome.plan.layers == {} and run(outcome, np.ones((2, 3), "float32")).shape == (2, 3)
    assert not found.search(None, PaperTimes()).plan.layers


def two_outputs():
    """Inputs a, b; a classifier's output of a, and an image of b that only conv2 makes."""
    nodes = [
        helper.make_node("Conv", ["a", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c1"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["scores"], "flatten"),
        helper.make_node("Conv", ["b", "w2"], ["image"], "conv2", pads=[1, 1, 1, 1]),
    ]
    shape = ["N", 4, 8, 8]
    outputs = {"scores": ["N", 5], "image": ["N", 6, 8, 8]}
    return make_model(nodes, {"a": shape, "b": shape}, outputs, weights_of(w1=(5, 4, 3, 3), w2=(6, 4, 3, 3)))


def test_every_output_counts(tmp_path):
    """A layer that only the second output sees must keep the budget there."""
    found = network(two_outputs(), tmp_path)
    rough = np.random.default_rng(0).standard_normal((64, 4, 8, 8)).astype("float32")
    options = {"max_drop": 0.1, "L": 4, "H": 4, "granularity": "pixel"}
    outcome = found.search({"a": images(64), "b": rough}, PaperTimes(), **options)
    assert set(outcome.plan.reused) == {"conv1"}
    assert "accuracy budget" in reasons(outcome)["conv2"]
    scores, image = run(outcome, images(2), rough[:2])
    assert scores.shape == (2, 5) and image.shape == (2, 6, 8, 8)


def test_outputs_without_an_image_axis(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["y"], ["all"], "mean", keepdims=0),
    ]
    model = make_model(nodes, {"x": ["N", 4, 8, 8]}, {"y": ["N", 6, 8, 8], "all": []}, weights_of(w=(6, 4, 3, 3)))
    outcome = network(model, tmp_path).search(images(32), PaperTimes(), max_drop=0.5, **NARROW)
    assert run(outcome, images(2))[1].shape == ()


def test_weights_that_are_an_input(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    model = make_model([node], {"x": ["N", 6, 8], "w": [8, 3]}, {"y": ["N", 6, 3]})
    found = network(model, tmp_path)
    assert "not constant" in reasons(found.search(None, PaperTimes()))["product"]


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_constant_activations(image_net, value):
    data = np.full((24, 4, 8, 8), value, "float32")
    outcome = image_net.search(data, PaperTimes(), max_drop=0.5, **NARROW)
    assert np.isfinite(run(outcome, data[:2])).all() and set(outcome.plan.layers) == {"conv"}


def test_activations_with_nan(tmp_path):
    """A network may divide by zero on calibration data; that must not break the search."""
    nodes = [
        helper.make_node("Div", ["x", "x"], ["d"], "divide"),
        helper.make_node("Conv", ["d", "w"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    model = make_model(nodes, {"x": ["N", 4, 8, 8]}, {"y": ["N", 6, 8, 8]}, weights_of(w=(6, 4, 3, 3)))
    data = images(16)
    data[::3, :, 2, 3] = 0
    outcome = network(model, tmp_path).search(data, PaperTimes(), max_drop=0.5, **NARROW)
    clean = run(outcome, images(2))
    assert np.isfinite(clean).all()


def test_two_images(net):
    """One to plan with, one to check: nothing can be shown, and nothing breaks."""
    outcome = net.search(images(2), PaperTimes(), max_drop=0.1, **NARROW)
    assert not outcome.plan.reused and outcome.result.images_needed is not None


def test_batches_that_do_not_divide(image_net):
    outcome = image_net.search(images(51), PaperTimes(), max_drop=0.2, batch_size=7, **NARROW)
    assert outcome.result.n_images == 25


def test_fixed_batch(tmp_path):
    """Samples that fill no batch are left out in each half."""
    found = network(image_to_image(batch=4), tmp_path)
    outcome = found.search(images(51), PaperTimes(), max_drop=0.2, batch_size=4, **NARROW)
    assert outcome.result.n_images == 24 and outcome.plan.reused
    assert run(outcome, images(4)).shape == (4, 6, 8, 8)


def saved(outcome, folder) -> tuple[bytes, bytes]:
    outcome.plan.save(folder)
    return (folder / "plan.json").read_bytes(), (folder / "planes.npz").read_bytes()


def test_same_timings_same_plan(net, tmp_path):
    first, second = (net.search(images(64), PaperTimes(), max_drop=0.2, **NARROW) for _ in range(2))
    assert saved(first, tmp_path / "a") == saved(second, tmp_path / "b")
    assert ReusePlan.load(tmp_path / "a") == first.plan


def test_measured_timings_repeat_the_search(net, tmp_path):
    """Times of this machine, saved and loaded: the second search measures nothing and finds the same."""
    options = {"max_drop": 0.2, "time_budget": 600.0, **NARROW}
    first = net.search(images(64), None, **options)
    first.timings.save(tmp_path / "timings.json")
    loaded = Timings.load(tmp_path / "timings.json")
    known = len(loaded)
    second = net.search(images(64), loaded, **options)
    assert len(second.timings) == known
    assert saved(first, tmp_path / "a") == saved(second, tmp_path / "b")


def test_another_seed_plans_with_other_images(net):
    one, two = (held_back(net, images(64), seed) for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_planes_see_no_held_back_image(net, tmp_path):
    """Other held-back images, the same plan: nothing of them reaches the planes."""
    data = images(64)
    planning = net.calibration(np.arange(64 * 256, dtype="float32").reshape(64, 4, 8, 8)).split(0)[0]
    first = [inputs["x"][:, 0, 0, 0] // 256 for inputs, _ in planning]
    other = data.copy()
    kept = np.concatenate(first).astype(int)
    changed = np.setdiff1d(np.arange(64), kept)
    other[changed] = images(64)[::-1][changed]
    assert len(kept) == len(changed) == 32
    found = [net.search(d, PaperTimes(), max_drop=0.5, **NARROW) for d in (data, other)]
    assert saved(found[0], tmp_path / "a") == saved(found[1], tmp_path / "b")


def test_time_budget(net):
    """Used up at once: the most promising layer is not tried either, and a dense library is built."""
    outcome = net.search(images(32), PaperTimes(), max_drop=0.5, time_budget=1e-6, **NARROW)
    assert not outcome.plan.reused and "time budget" in reasons(outcome)["conv2"]
    assert any("2 of 2 promising layers untried" in note for note in outcome.result.notes)
    assert run(outcome, images(1)).shape == (1, 5)


def test_time_budget_ends_while_clustering(net):
    """What is clustered first may save most; the rest is not looked at."""
    times = PaperTimes()
    times.put("search|shortlist conv2", 1.0)
    times.put("search|shortlist conv1", 60.0)
    times.put("search|image", 1e-4)
    outcome = net.search(images(64), times, max_drop=0.5, time_budget=100.0, **NARROW)
    assert "time budget" in reasons(outcome)["conv1"] and not outcome.result.layers[0].candidates
    assert outcome.result.layers[1].candidates


def test_time_budget_for_one_layer(net):
    """The layer that promises more is tried first, whatever its place in the network."""
    times = PaperTimes()
    for layer in ("conv1", "conv2"):
        times.put(f"search|shortlist {layer}", 0.1)
    times.put("search|measure conv2", 1.0)
    times.put("search|measure conv1", 60.0)
    times.put("search|image", 1e-4)
    for step in ("weigh", "finer settings", "variants", "choose", "verify"):
        times.put(f"search|{step}", 61.0)
    outcome = net.search(images(64), times, max_drop=0.5, time_budget=100.0, **NARROW)
    assert "time budget" in reasons(outcome)["conv1"] and set(outcome.plan.reused) <= {"conv2"}
    assert outcome.result.layers[1].candidates


def test_a_search_frees_its_network(net):
    calibration = net.calibration(images(8))
    clock = MeasuredClock(Timings())
    found = LayerSearch(
        net.mod, net.checked, CandidateRules(), calibration, TARGET, SearchOptions(), Timings(), SLOW, clock
    )
    planning = weakref.ref(found.network)
    assert isinstance(planning(), PlanningNetwork)
    del found
    gc.collect()
    assert planning() is None
