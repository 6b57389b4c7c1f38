"""The CifarNet that TREC's authors trained with reuse, through a plan file.

Its conv2 was trained with `segment` vectors of L = 10 hashed by H = 10 planes of its own, over batches of 100: it is
better with that reuse than without, and a wrong clustering shows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

import adr_tvm
from adr_tvm import CompileOptions, ReusePlan, ReuseSetting, compile_model
from adr_tvm.deploy.bundle import file_sha256
from adr_tvm.hashing.planes import learned_planes
from adr_tvm.plan import LayerPlan
from benchmarks.validation.data_folder import DataFolder, for_trec
from benchmarks.validation.row import Row, Run, percent

MODEL, LAYER = "trec_cifarnet_cifar10", "/conv2/Conv"
SEGMENTS = 160  # K = 64 * 5 * 5 entries of a row, 10 each
BATCH, IMAGES = 100, 2000


def trec_plan(data: DataFolder, scope: Literal["image", "batch"]) -> ReusePlan:
    """conv2 as its authors trained it; scope ``batch`` is theirs."""
    planes = learned_planes(data.trec_planes(), SEGMENTS, 10)
    setting = ReuseSetting("segment", L=10, H=10, hash="learned", scope=scope)
    return ReusePlan(
        model_sha256=file_sha256(data.model(MODEL)),
        target="cpu",
        seed=0,
        metric="top1",
        budget=None,
        layers={LAYER: LayerPlan(LAYER, "reuse", setting, "trained with this reuse")},
        planes={LAYER: planes},
    )


def compile_trec(run: Run, scope: Literal["image", "batch"]) -> Path:
    """Write the plan file and compile it into a bundle; returns the bundle."""
    plan = trec_plan(run.data, scope).save(run.work / f"trec-{scope}-plan")
    options = CompileOptions(plan=plan, threads=run.threads)
    return compile_model(run.data.model(MODEL), run.work / f"trec-{scope}", options).folder


def check_trec(run: Run) -> Iterator[Row]:
    """Accuracy on the first 2,000 test images, in batches of 100."""
    images, labels = run.data.cifar10(0, IMAGES)
    x = for_trec(images)
    model = adr_tvm.load(compile_trec(run, "batch"))
    dense = _accuracy([np.asarray(model.dense(part)) for part in _batches(x)], labels)
    reuse, _ = _with_counts(model, x, labels)
    yield Row("TREC dense", "66 to 67 %", percent(dense), 0.66 <= dense <= 0.67, {"accuracy": dense})
    yield Row("TREC batch scope", ">= 76.5 % (76.95)", percent(reuse), reuse >= 0.765, {"accuracy": reuse})
    reuse, r_c = _with_counts(adr_tvm.load(compile_trec(run, "image")), x, labels)
    yield Row(
        "TREC image scope",
        "about 68 %, r_c about .40",
        f"{percent(reuse)}, r_c {r_c:.3f}",
        abs(reuse - 0.68) <= 0.01 and abs(r_c - 0.40) <= 0.02,
        {"accuracy": reuse, "r_c": r_c},
    )


def _with_counts(model: Any, x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    outputs, ratios = [], []
    for part in _batches(x):
        y, counts = model.run_with_counts(part)
        outputs.append(y)
        ratios.append(counts[LAYER].r_c)
    return _accuracy(outputs, labels), float(np.mean(ratios))


def _batches(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + BATCH] for start in range(0, len(x), BATCH)]


def _accuracy(outputs: list[np.ndarray], labels: np.ndarray) -> float:
    return float((np.concatenate(outputs).argmax(axis=1) == labels).mean())
