"""Fine-tuning under a plan: through both command lines, planes refined by training, and what is refused.

The oracle of the accuracy is the compiled bundle, which runs the network and the plan that fine-tuning wrote.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from training_fakes import CLASSES

import adr_tvm
from adr_tvm._tvm import cpu_target
from adr_tvm.cli.compile import main as adr_compile
from adr_tvm.cli.train import main as adr_train
from adr_tvm.hashing.planes import HashPlanes, analyse
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planes_file import LayerPlanes
from adr_tvm.settings import ReuseSetting
from adr_tvm.train import plane_learning
from adr_tvm.train.fine_tuning import TunedEngine
from adr_tvm.train.networks import network_file
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.options import TrainOptions
from adr_tvm.train.starting_plan import starting_plan

PADDED = {"kernel_shape": [3, 3], "pads": [1] * 4}
SHAPES = {
    "conv1.weight": (16, 3, 3, 3),
    "conv1.bias": (16,),
    "conv2.weight": (16, 16, 3, 3),
    "bn2.scale": (16,),
    "bn2.bias": (16,),
    "bn2.mean": (16,),
    "bn2.variance": (16,),
    "logits.weight": (CLASSES, 16 * 16),
    "logits.bias": (CLASSES,),
}
LAYERS = [
    ("Conv", "conv1", PADDED),
    ("Relu", "relu1", {}),
    ("Conv", "conv2", PADDED),
    ("BatchNormalization", "bn2", {}),
    ("Relu", "relu2", {}),
    ("MaxPool", "pool2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Flatten", "flatten", {"axis": 1}),
    ("Gemm", "logits", {"transB": 1}),
]
COARSE = ReuseSetting("pixel", 16, 1, "gaussian", "image", max_clusters=60)
TRAINING = ["--batch", "16", "--epochs", "3", "--lr", "0.02", "--no-compile-ahead", "--refresh-planes", "10", "-q"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``data.npz`` (stripes of four directions), the network trained on it, and a lossy plan."""
    folder = tmp_path_factory.mktemp("tuning")
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:8, :8]
    labels = rng.integers(0, CLASSES, 480).astype(np.int32)
    phase = np.stack([y, x, x + y, x - y])[labels] * 1.6 + rng.uniform(0, 6, (480, 1, 1))
    images = 128 + 60 * np.sin(phase)[..., None] + rng.normal(0, 70, (480, 8, 8, 3))
    images = images.clip(0, 255).astype(np.uint8)
    np.savez(folder / "data.npz", x_train=images[:320], y_train=labels[:320], x_test=images[320:], y_test=labels[320:])
    onnx.save(build_chain("small", LAYERS, he_normal(SHAPES, 0), (3, 8, 8), CLASSES), folder / "raw.onnx")
    assert train(folder, "dense", "raw.onnx", "--epochs", "6") == 0
    plan_of(folder / "dense" / "model.onnx").save(folder / "plan")
    return folder


def train(folder, out: str, *more: str) -> int:
    """``adr-train`` with paths in ``folder``; later options win."""
    words = [str(folder / word) if word.endswith((".onnx", ".json")) else word for word in more]
    return adr_train(["--data", str(folder / "data.npz"), "--out", str(folder / out), *TRAINING, *words])


def plan_of(model, setting: ReuseSetting = COARSE, layer: str = "conv2") -> ReusePlan:
    """``layer`` reuses with random planes."""
    entry = LayerPlan(layer, "reuse", setting, "to be fine-tuned")
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((1, 16, setting.H)).astype(np.float32)
    thresholds = np.full((1, setting.H), 0.3, np.float32)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    layers = {"conv1": LayerPlan("conv1", "dense", None, "first"), layer: entry}
    return ReusePlan(digest, "cpu", 0, "top1", None, layers, {layer: LayerPlanes(planes, thresholds)})


def epochs(folder, out: str) -> tuple[dict, list[dict]]:
    events = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return events[0], [event for event in events if event["event"] == "epoch"]


def compiled_accuracy(folder, out: str) -> float:
    """Top-1 of the bundle that ``adr-compile --plan`` makes of a run's files."""
    run = folder / out
    assert (
        adr_compile([str(run / "model.onnx"), "--plan", str(run / "plan.json"), "-o", str(run / "bundle"), "-q"]) == 0
    )
    model = onnx.load(run / "model.onnx")
    values = {each.key: np.array(each.value.split(","), np.float32) for each in model.metadata_props}
    arrays = np.load(folder / "data.npz")
    mean, std = values["adr_tvm.mean"], values["adr_tvm.std"]
    x = ((arrays["x_test"].astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    network = adr_tvm.load(run / "bundle")
    logits = np.concatenate([network(np.ascontiguousarray(part)) for part in np.array_split(x, 10)])
    return float((logits.argmax(1) == arrays["y_test"]).mean())


@pytest.fixture(scope="module")
def tuned(folder):
    """A whole run with learned planes."""
    assert train(folder, "tuned", *TUNED) == 0
    return folder


TUNED = ("--init", "dense/model.onnx", "--plan", "plan/plan.json")


def test_a_lossy_plan_becomes_usable(tuned):
    """Accuracy with reuse rises from far below the dense network's, and is what the compiled network has."""
    start, found = epochs(tuned, "tuned")
    before, after = start["before"], found[-1]["test_accuracy"]
    assert before["reuse"] < before["dense"] - 0.1 and after > before["reuse"] + 0.1
    assert compiled_accuracy(tuned, "tuned") == after
    old, new = ReusePlan.load(tuned / "plan"), ReusePlan.load(tuned / "tuned")
    assert new.layers["conv2"].setting == replace(COARSE, hash="learned") and new.layers["conv1"] == old.layers["conv1"]
    assert not np.array_equal(new.planes["conv2"].planes, old.planes["conv2"].planes)
    page = (tuned / "tuned" / "report.html").read_text()
    assert "Before fine-tuning" in page and "test, with reuse" in page and "test, dense" in page


def test_it_resumes_to_the_same_bytes(tuned, capsys):
    """Stopped within the second epoch and resumed, without the plan's file: the same network and the same planes."""
    assert train(tuned, "parts", *TUNED, "--max-steps", "33") == 0
    (tuned / "plan" / "plan.json").rename(tuned / "away.json")
    try:
        assert train(tuned, "parts", *TUNED, "--resume") == 0
    finally:
        (tuned / "away.json").rename(tuned / "plan" / "plan.json")
    for name in ("model.onnx", "plan.json", "planes.npz"):
        assert (tuned / "parts" / name).read_bytes() == (tuned / "tuned" / name).read_bytes(), name
    out = capsys.readouterr().out
    before = epochs(tuned, "tuned")[0]["before"]["reuse"]
    assert f"(before {100 * before:g} %" in out and "model.onnx, plan.json, planes.npz" in out
    assert train(tuned, "parts", *TUNED, "--resume", "--hash-planes", "fixed") == 2
    assert "--hash-planes (was None, now fixed)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((*TUNED, "--max-drop", "0.1"), "--plan and --max-drop cannot go together"),
        ((*TUNED, "--reuse", "adaptive"), "--reuse adaptive cannot go with a plan"),
        ((*TUNED, "--scope", "image", "--only", "conv2"), "--scope and --only cannot go with a plan"),
        ((*TUNED, "--hash-planes", "random"), "expected one of fixed, refit, learned"),
        (("--init", "raw.onnx", "--hash-planes", "fixed"), "--hash-planes needs --plan or --max-drop"),
        (("--init", "raw.onnx", "--max-drop", "2"), "--max-drop is 2.0"),
        ((), "give NETWORK or --init"),
    ],
)
def test_wrong_use_is_exit_code_2(folder, capsys, given, message):
    assert train(folder, "wrong", *given) == 2
    assert message in capsys.readouterr().err


def test_plans_that_do_not_fit_are_exit_code_3(folder, capsys):
    model = folder / "dense" / "model.onnx"
    for name, plan, message in (
        (
            "other",
            replace(plan_of(model), model_sha256="0" * 64),
            "the plan is for the model with SHA-256 000000000000",
        ),
        ("unknown", plan_of(model, layer="conv9"), "reuses layer 'conv9', which is not one"),
        ("gain", plan_of(model, replace(COARSE, gain=True)), "conv2: gain has no gradient"),
        ("pieces", plan_of(model, layer="logits"), "the planes of layer 'logits' are (1, 16, 1)"),
    ):
        plan.save(folder / name)
        assert train(folder, "misfit", "--init", "dense/model.onnx", "--plan", f"{name}/plan.json") == 3
        assert message in capsys.readouterr().err
    assert train(folder, "misfit", "--init", "dense/model.onnx", "--plan", "nowhere/plan.json") == 3
    assert "nowhere" in capsys.readouterr().err
    assert train(folder, "misfit", "cifarnet", "--init", "dense/model.onnx") == 3
    assert "are not those of cifarnet: it has conv1.weight [16, 3, 3, 3], not" in capsys.readouterr().err
    assert train(folder, "misfit", "--init", "nowhere.onnx") == 3
    assert "there is no file" in capsys.readouterr().err


def test_initial_weights_of_another_file(folder, tmp_path):
    """A network with the weights of --init is that network, whatever metadata its file has."""
    path = network_file(folder / "raw.onnx", 0, tmp_path, folder / "dense" / "model.onnx")
    made, given = (onnx.load(file).graph.initializer for file in (path, folder / "dense" / "model.onnx"))
    assert path.parent == tmp_path and path.name == "raw-initial.onnx"
    assert [each.raw_data for each in made] == [each.raw_data for each in given]


def test_lossless_layers_train_dense(folder, caplog):
    lossless = plan_of(folder / "dense" / "model.onnx", ReuseSetting("row", L=1, H=1, hash="exact"))
    with caplog.at_level("INFO", logger="adr_tvm"):
        made = engine(folder, lossless)
    assert not any(made.stage.values())
    assert "its reuse is lossless, so it trains dense" in caplog.text and "everything trains dense" in caplog.text


def test_evaluation_has_the_plans_guards_and_exact_hashes(folder):
    """`exact` reuse is the dense network to 1e-5 (other order of sums), and so is a guard that no unit keeps."""
    model, x = folder / "dense" / "model.onnx", np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)
    exact = ReuseSetting("pixel", 16, hash="exact", scope="batch")
    for setting in (replace(COARSE, max_clusters=0), exact):
        made = engine(folder, plan_of(model, setting))
        state = made.initial_state()
        reuse, dense = made.evaluator(16).logits(state, x), made.dense_evaluator(16).logits(state, x)
        np.testing.assert_allclose(reuse, dense, atol=1e-5 * np.abs(dense).max())
        assert made.stage["conv2"].setting.max_clusters is None
    repeated, labels = np.resize(x, (16, 3, 8, 8)), np.zeros(16, np.int32)
    result = made.compile(made.stage).run(made.initial_state(), repeated, labels, 0.0)
    assert np.isfinite(result.loss) and 5 < result.clusters["conv2"][0] <= 5 * 64


def test_a_plan_can_be_found_first(folder, monkeypatch):
    """The planner gets training images with labels and the allowed drop; gain, which has no gradient, is left out."""
    from adr_tvm.data.training_data import open_training_data
    from adr_tvm.planner import search

    seen = {}
    model = folder / "dense" / "model.onnx"

    def found(mod, checked, rules, samples, target, asked, cost):
        seen.update(count=len(samples), labels=samples.labels, drop=asked.max_drop, x=next(iter(samples))[0]["x"])
        return SimpleNamespace(plan=plan_of(model, replace(COARSE, gain=True)))

    monkeypatch.setattr(search, "search", found)
    data = open_training_data(folder / "data.npz")
    plan = starting_plan(model, data, TrainOptions(max_drop=0.3), folder / "planned")
    assert plan.reused == {"conv2": COARSE} and ReusePlan.load(folder / "planned" / "initial-plan") == plan
    assert (seen["count"], seen["drop"]) == (320, 0.3)
    np.testing.assert_array_equal(seen["labels"], data.train.labels)
    np.testing.assert_allclose(seen["x"].mean(), 0, atol=0.2)


def engine(folder, plan: ReusePlan) -> TunedEngine:
    return TunedEngine(plan, None, None, folder / "dense" / "model.onnx", SGD(), 16, cpu_target())


def clustered(seed: int = 0) -> np.ndarray:
    """Vectors around 12 centres, float32 [1500, 2, 4], some of them zero."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2, 12, 4)) * [2, 1, 1, 0.5] + 1
    chosen = rng.integers(0, 12, (1500, 2))
    vectors = centres[np.arange(2), chosen] + 0.15 * rng.standard_normal((1500, 2, 4))
    vectors[:20] = 0
    return vectors.astype(np.float32)


def test_gradient_of_planes_against_finite_differences():
    """Central differences of the relaxed loss, costs held; float64: to 1e-6 of the largest entry."""
    x = clustered()[20:320, 0].astype(np.float64)
    rng = np.random.default_rng(1)
    planes, thresholds, scales = rng.standard_normal((4, 5)), rng.standard_normal(5), rng.uniform(0.5, 2, 5)
    costs = plane_learning.Clusters.of(x, np.arange(300) % 3, planes, thresholds).flip_costs(x, 5)
    assert np.count_nonzero(costs) > 300

    def loss(planes, thresholds):
        p = 1 / (1 + np.exp(-plane_learning.ALPHA * (x @ planes - thresholds) / scales))
        return float((p * costs).sum())

    found = plane_learning.gradient(x, planes, thresholds, scales, costs)
    for index, tensor in enumerate((planes, thresholds)):
        expected = np.zeros_like(tensor)
        for place in np.ndindex(tensor.shape):
            sides = []
            for change in (1e-6, -1e-6):
                moved = [planes.copy(), thresholds.copy()]
                moved[index][place] += change
                sides.append(loss(*moved))
            expected[place] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(found[index], expected, atol=1e-6 * np.abs(expected).max())


def test_costs_of_a_flip_against_a_loop():
    """For each vector and bit: error at the cluster with the bit set less that with it not set, of the same unit."""
    x = clustered()[20:120, 0].astype(np.float64)
    rng = np.random.default_rng(1)
    units, planes, thresholds = np.arange(100) % 2, rng.standard_normal((4, 3)), np.ones(3)
    found = plane_learning.Clusters.of(x, units, planes, thresholds).flip_costs(x, 3)
    keys = [(int(unit), tuple(row > thresholds)) for unit, row in zip(units, x @ planes, strict=True)]
    means = {key: x[[k == key for k in keys]].mean(axis=0) for key in keys}
    for i, (unit, bits) in enumerate(keys):
        for h in range(3):
            both = [means.get((unit, (*bits[:h], bit, *bits[h + 1 :]))) for bit in (False, True)]
            missing = both[0] is None or both[1] is None
            expected = 0 if missing else ((x[i] - both[1]) ** 2).sum() - ((x[i] - both[0]) ** 2).sum()
            assert found[i, h] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("images", [1, 3])
def test_learned_planes_lower_the_error(images):
    """Error, and error times clusters, fall on the sample and on vectors of the same kind, whatever the unit."""
    everything = clustered()
    sample, others = everything[::2], everything[1::2]
    rng = np.random.default_rng(2)
    planes = HashPlanes(
        rng.standard_normal((2, 4, 5)).astype(np.float32),
        np.full((2, 5), 0.5, np.float32),
        np.zeros((2, 4), np.float32),
    )
    planes.thresholds[0, 4] = np.inf
    units = np.arange(750) // (750 // images)
    learned = plane_learning.learned(planes, sample, units)
    for vectors in (sample, others):
        before, after = (analyse(vectors, each, images) for each in (planes, learned))
        assert after[1] < 0.9 * before[1] and after[0] * after[1] < 0.95 * before[0] * before[1]
    assert np.isposinf(learned.thresholds[0, 4])
    np.testing.assert_array_equal(learned.planes[0, :, 4], planes.planes[0, :, 4])
    again = plane_learning.learned(planes, sample, units)
    np.testing.assert_array_equal(again.planes, learned.planes)


def test_planes_without_anything_to_learn_stay():
    """Vectors of zeros, of one value, or with NaN."""
    planes = HashPlanes(np.ones((1, 4, 3), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32))
    for value in (0.0, 2.0, np.nan):
        vectors = np.full((50, 1, 4), value, np.float32)
        learned = plane_learning.learned(planes, vectors, np.zeros(50, np.int64))
        np.testing.assert_array_equal(learned.planes, planes.planes)
        np.testing.assert_array_equal(learned.thresholds, planes.thresholds)
