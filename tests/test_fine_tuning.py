"""Fine-tuning under a plan: through both command lines, planes refined by training, and what is refused.

The oracle of the accuracy is the compiled bundle, which runs the network and the plan that fine-tuning wrote.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from training_fakes import CLASSES

import adr_tvm
from adr_tvm.cli.compile import main as adr_compile
from adr_tvm.cli.train import main as adr_train
from adr_tvm.hashing.planes import HashPlanes, analyse
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.planes_file import LayerPlanes
from adr_tvm.settings import ReuseSetting
from adr_tvm.train import plane_learning

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
COARSE = ReuseSetting("pixel", 16, 2, "gaussian", "image", max_clusters=60)
TRAINING = ["--batch", "16", "--epochs", "3", "--lr", "0.02", "--no-compile-ahead", "--refresh-planes", "10", "-q"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``quadrants.npz`` (stripes of four directions), the network trained on it, and a lossy plan."""
    folder = tmp_path_factory.mktemp("tuning")
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:8, :8]
    labels = rng.integers(0, CLASSES, 480).astype(np.int32)
    phase = np.stack([y, x, x + y, x - y])[labels] * 1.6 + rng.uniform(0, 6, (480, 1, 1))
    images = 128 + 60 * np.sin(phase)[..., None] + rng.normal(0, 25, (480, 8, 8, 3))
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
    assert adr_compile([str(run / "model.onnx"), "--plan", str(run / "plan.json"), "-o", str(run / "bundle"), "-q"]) == 0
    model = onnx.load(run / "model.onnx")
    values = {each.key: np.array(each.value.split(","), np.float32) for each in model.metadata_props}
    arrays = np.load(folder / "data.npz")
    mean, std = values["adr_tvm.mean"], values["adr_tvm.std"]
    x = ((arrays["x_test"].astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    network = adr_tvm.load(run / "bundle")
    logits = np.concatenate([network(np.ascontiguousarray(part)) for part in np.array_split(x, 10)])
    return float((logits.argmax(1) == arrays["y_test"]).mean())


@pytest.mark.parametrize("planes", ["learned", "refit", "fixed"])
def test_a_lossy_plan_becomes_usable(folder, planes, capsys):
    """Accuracy with reuse rises from far below the dense network's, and is what the compiled network has."""
    more = ("--init", "dense/model.onnx", "--plan", "plan/plan.json", "--hash-planes", planes)
    assert train(folder, planes, *more) == 0
    out = capsys.readouterr().out
    assert "test accuracy with reuse" in out and "plan.json" in out
    start, found = epochs(folder, planes)
    before, after = start["before"], found[-1]["test_accuracy"]
    print(planes, before, [(e["test_accuracy"], e["dense_accuracy"]) for e in found])
    assert before["reuse"] < before["dense"] - 0.1 and after > before["reuse"] + 0.1
    assert compiled_accuracy(folder, planes) == after
    old, new = ReusePlan.load(folder / "plan"), ReusePlan.load(folder / planes)
    expected = replace(COARSE, hash="learned") if planes == "learned" else COARSE
    assert new.layers["conv2"].setting == expected and new.layers["conv1"] == old.layers["conv1"]
    same = np.array_equal(new.planes["conv2"].planes, old.planes["conv2"].planes)
    assert same == (planes == "fixed")
    page = (folder / planes / "report.html").read_text()
    assert "Before fine-tuning" in page and "test, with reuse" in page and "test, dense" in page
