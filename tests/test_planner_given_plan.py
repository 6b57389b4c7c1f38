"""Plans that are given, and reuse without calibration data."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from planner_networks import (  # noqa: F401
    TARGET,
    PaperTimes,
    classifier,
    image_to_image,
    images,
    network,
    slow_machine,
)
from tvm import relax

from adr_tvm.errors import DataError, ModelError
from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planes_file import LayerPlanes
from adr_tvm.planner.lossless import lossless_findings, lossless_setting
from adr_tvm.planner.options import SearchOptions
from adr_tvm.report.results import Timings
from adr_tvm.settings import ReuseSetting

pytestmark = pytest.mark.usefixtures("slow_machine")
HASHED = ReuseSetting("pixel", L=4, H=6, hash="gaussian")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return network(classifier(), tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def image_net(tmp_path_factory):
    return network(image_to_image(), tmp_path_factory.mktemp("image"))


def plan(net, bits=6, **settings) -> ReusePlan:
    layers = {layer: LayerPlan(layer, "reuse", setting, "as asked") for layer, setting in settings.items()}
    normal = np.random.default_rng(0).standard_normal((1, 4, bits)).astype("float32")
    planes = {layer: LayerPlanes(normal, np.zeros((1, bits), "float32")) for layer in layers}
    return ReusePlan(net.checked.sha256, "cpu", 0, "agreement", None, layers, planes)


def test_a_plan_is_applied_as_it_is(net):
    """Even where it is slower, and outside of the budget: that is what the report is for."""
    given = plan(net, conv1=HASHED)
    outcome = net.evaluate(given, images(20), PaperTimes(network=1.5))
    assert outcome.plan is given and [layer.decision for layer in outcome.result.layers] == ["reuse", "dense", "dense"]
    assert outcome.result.n_images == 20, "nothing is held back where nothing is searched"
    assert outcome.result.metric == "agreement" and outcome.result.speedup == pytest.approx(1 / 1.5)
    (layer, *_) = outcome.result.layers
    assert layer.r_c == pytest.approx(layer.clusters / layer.vectors) and 0 < layer.r_c <= 1


def test_batch_scope_is_counted_by_image(image_net):
    setting = ReuseSetting("pixel", L=4, H=6, hash="gaussian", scope="batch")
    (layer,) = image_net.evaluate(plan(image_net, conv=setting), images(16), PaperTimes()).result.layers
    assert layer.clusters <= 65 / 8 and layer.r_c == pytest.approx(layer.clusters / 64)


def test_without_data_nothing_is_measured(net):
    outcome = net.evaluate(plan(net, conv1=HASHED), None, PaperTimes())
    assert outcome.result.metric == "none" and outcome.result.drop is None
    assert any("nothing was measured layer by layer" in note for note in outcome.result.notes)
    machine = relax.VirtualMachine(outcome.executable, tvm.cpu())
    assert machine["main"](tvm.runtime.tensor(images(2))).numpy().shape == (2, 5)


def test_a_plan_that_reuses_nothing(net):
    outcome = net.evaluate(plan(net), images(8), PaperTimes())
    assert outcome.result.dense_ms == outcome.result.reuse_ms == 1000.0


@pytest.mark.parametrize(
    ("settings", "bits", "words"),
    [
        ({"conv3": HASHED}, 6, "'conv3', which the model does not have"),
        ({"conv1": HASHED}, 7, r"does not fit the model: conv1.*\[S, L, H\] = \(1, 4, 6\)"),
        ({"conv2": HASHED}, 6, r"conv2: planes \(1, 4, 6\).*\(2, 4, 6\)"),
    ],
)
@pytest.mark.parametrize("data", [True, False])
def test_plans_that_do_not_fit(net, settings, bits, words, data):
    with pytest.raises(ModelError, match=words):
        net.evaluate(plan(net, bits, **settings), images(8) if data else None)


def test_a_metric_that_does_not_fit(image_net):
    with pytest.raises(DataError, match="needs outputs"):
        image_net.evaluate(plan(image_net, conv=HASHED), images(8), PaperTimes(), metric="agreement")


class EvenTimes(Timings):
    """Every run takes as long as any other."""

    def get(self, key):
        return 1.0


def test_lossless_without_data(net):
    """Every layer with enough rows matches them; the others say why not."""
    outcome = net.search(None, EvenTimes())
    assert {name: s.lossless for name, s in outcome.plan.reused.items()} == {"conv1": True, "conv2": True}
    assert "too few" in outcome.plan.layers["fc"].reason
    assert outcome.result.metric == "none" and outcome.result.budget is None
    assert outcome.result.layers[0].r_c is None, "nothing was counted"
    machine = relax.VirtualMachine(outcome.executable, tvm.cpu())
    x = tvm.runtime.tensor(images(3))
    np.testing.assert_array_equal(machine["main"](x).numpy(), machine["dense"](x).numpy())


def test_lossless_findings_and_rules(net):
    found = lossless_findings(net.mod, CandidateRules(skip=["conv1"]), SearchOptions())
    assert "conv1" not in found.chosen and "--skip conv1" in found.reasons["conv1"]


def test_lossless_reverted_on_unseen_data(net):
    class Slow(EvenTimes):
        def get(self, key):
            return 1.2 if key.startswith("network|main") else 1.0

    outcome = net.search(None, Slow())
    assert not outcome.plan.reused and "reverted: the whole network" in outcome.plan.layers["conv1"].reason


def test_lossless_setting_stops_where_hardly_any_row_repeats(net):
    first, *_ = find_candidates(net.mod["main"], "main", CandidateRules())
    assert lossless_setting(first).max_clusters == int(0.85 * 64)
