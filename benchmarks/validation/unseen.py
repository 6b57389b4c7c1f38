"""What the planner promised, measured on inputs that it did not see.

Each case searches on some inputs and measures on others, with arithmetic of its own. The planner promises the budget
at a confidence of 90 %; a case fails beyond one and a half times the budget (``psnr``: 1.8 dB, the same factor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import adr_tvm
from adr_tvm import CompileOptions, compile_model
from benchmarks.validation.data_folder import (
    DataFolder,
    for_resnet20,
    for_squeezenet,
    for_style_transfer,
    for_waifu2x,
)
from benchmarks.validation.row import Row, Run, percent

BATCH = 50
SLACK = 1.5
MOST_PSNR = 200.0  # dB; stands for equal outputs, whose psnr is infinite


@dataclass(frozen=True)
class Case:
    """A network, the inputs to plan with, and the inputs to measure on.

    Attributes:
        model: name of the ONNX file.
        planning: inputs for the search, and their labels or None.
        unseen: likewise, for the measurement.
        options: of the compile run; a metric, a budget and perhaps shapes.
        name: of the network's input.
    """

    model: str
    planning: tuple[np.ndarray, np.ndarray | None]
    unseen: tuple[np.ndarray, np.ndarray | None]
    options: dict[str, Any] = field(default_factory=dict)
    name: str = "x"


def check_resnet20(run: Run) -> Iterator[Row]:
    """Top-1 within 0.01 and 0.05: 1,000 images from the end of the test set to plan with, its first 3,000 unseen."""
    images, labels = run.data.cifar10(0, 3000)
    planning, planning_labels = run.data.cifar10(9000, 10000)
    halves = (for_resnet20(planning), planning_labels), (for_resnet20(images), labels)
    for max_drop in (0.01, 0.05):
        yield _measure(run, Case("resnet20_cifar10", *halves, {"metric": "top1", "max_drop": max_drop}))


def check_keywords(run: Run) -> Iterator[Row]:
    """Top-1 within 0.01: each half of the 1,000 clips is planned with, the other half is unseen, 1,000 in all."""
    x, labels = run.data.keywords()
    halves = [slice(0, None, 2), slice(1, None, 2)]
    drops, reused = [], []
    for mine, other in (halves, halves[::-1]):
        options = {"metric": "top1", "max_drop": 0.01}
        case = Case("mlperf_kws_dscnn", (x[mine], labels[mine]), (x[other], labels[other]), options)
        row = _measure(run, case)
        drops.append(row.values["drop"])
        reused.append(row.values["reused"])
    yield _row("mlperf_kws_dscnn", "top1", 0.01, float(np.mean(drops)), reused, len(x))


def check_squeezenet(run: Run) -> Iterator[Row]:
    """Agreement within 0.1 and NMSE within 0.01 on photographs; every second one is unseen.

    There are few: at a confidence of 90 %, 30 held-back photographs that all agree show no less than 0.08.
    """
    x = for_squeezenet(run.data.photos((224, 224)))
    for options in ({"metric": "agreement", "max_drop": 0.1}, {"metric": "nmse", "max_drop": 0.01}):
        yield _measure(run, Case("squeezenet1_1_imagenet", (x[0::2], None), (x[1::2], None), options))


def check_style_transfer(run: Run) -> Iterator[Row]:
    """NMSE within 0.01 at 480 x 640."""
    yield from _image_network(
        run, "fst_wave", for_style_transfer, (480, 640), 12, {"metric": "nmse", "max_drop": 0.01}, "image_0_255"
    )


def check_super_resolution(run: Run) -> Iterator[Row]:
    """At least 40 dB, 128 x 128 to 256 x 256."""
    yield from _image_network(run, "waifu2x_upconv7_photo_x2", for_waifu2x, (128, 128), 24, {"min_psnr": 40.0}, "x")


def _image_network(
    run: Run,
    model: str,
    prepare: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    count: int,
    options: dict[str, Any],
    name: str,
) -> Iterator[Row]:
    x = prepare(_some_photos(run.data, size, 2 * count))
    shapes = {"input_shapes": {name: (1, *x.shape[1:])}}
    yield _measure(run, Case(model, (x[0::2], None), (x[1::2], None), {**options, **shapes}, name))


def _some_photos(data: DataFolder, size: tuple[int, int], count: int) -> np.ndarray:
    return data.photos(size)[:count]


def _measure(run: Run, case: Case) -> Row:
    (x, labels), (unseen, unseen_labels) = case.planning, case.unseen
    calibration = {case.name: x} if labels is None else {case.name: x, "labels": labels}
    options = CompileOptions(
        labels_name=None if labels is None else "labels",
        threads=run.threads,
        time_budget=run.time_budget,
        **case.options,
    )
    compiled = compile_model(run.data.model(case.model), run.work / case.model, options, calibration)
    model = adr_tvm.load(compiled.folder)
    fixed = model.inputs[0].shape[0]
    batch = fixed if isinstance(fixed, int) else BATCH
    parts = [unseen[start : start + batch] for start in range(0, len(unseen), batch)]
    dense = np.concatenate([np.asarray(model.dense(part)) for part in parts])
    reuse = np.concatenate([np.asarray(model(part)) for part in parts])
    metric = compiled.result.metric
    budget = options.max_drop if options.min_psnr is None else options.min_psnr
    found = METRICS[metric](dense, reuse, unseen_labels)
    return _row(case.model, metric, budget, found, [len(compiled.result.reused)], len(unseen))


def _row(model: str, metric: str, budget: float, found: float, reused: list[float], images: int) -> Row:
    show: Callable[[float], str] = percent if metric in ("top1", "agreement") else "{:.4g}".format
    layers = " and ".join(f"{int(count)}" for count in reused)
    if metric == "psnr":
        floor = budget - 10 * math.log10(SLACK)
        expected, passed = f"{metric} >= {floor:.1f} dB (asked: {budget:g})", found >= floor
    else:
        limit = SLACK * budget
        expected, passed = f"{metric} drop <= {show(limit)} (asked: {show(budget)})", found <= limit
    measured = f"{show(found)} on {images} inputs, {layers} layers reuse"
    return Row(f"unseen {model}", expected, measured, passed, {"drop": found, "reused": float(sum(reused))})


def _top1(dense: np.ndarray, reuse: np.ndarray, labels: np.ndarray | None) -> float:
    return float((dense.argmax(axis=1) == labels).mean() - (reuse.argmax(axis=1) == labels).mean())


def _disagreement(dense: np.ndarray, reuse: np.ndarray, _: np.ndarray | None) -> float:
    return float((dense.argmax(axis=1) != reuse.argmax(axis=1)).mean())


def _nmse(dense: np.ndarray, reuse: np.ndarray, _: np.ndarray | None) -> float:
    r, y = dense.astype(np.float64), reuse.astype(np.float64)
    axes = tuple(each for each in range(r.ndim) if each != 1)  # the mean over a channel
    return float(((y - r) ** 2).sum() / ((r - r.mean(axis=axes, keepdims=True)) ** 2).sum())


def _psnr(dense: np.ndarray, reuse: np.ndarray, _: np.ndarray | None) -> float:
    r, y = dense.astype(np.float64), reuse.astype(np.float64)
    error = ((y - r) ** 2).mean()
    return min(MOST_PSNR, 10 * math.log10((r.max() - r.min()) ** 2 / error)) if error else MOST_PSNR


METRICS = {"top1": _top1, "agreement": _disagreement, "nmse": _nmse, "psnr": _psnr}
