"""What plans are searched with and judged on: never the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adr_tvm.errors import DataError
from adr_tvm.models.bundled import cifar10_sample, cifarnet_path
from adr_tvm.models.cifar10 import load_cifar10, normalise
from adr_tvm.plan import ReusePlan
from benchmarks.networks import RESNET20, SQUEEZENET, WAIFU2X
from benchmarks.no_data import NoData
from benchmarks.validation.data_folder import (
    DataFolder,
    for_resnet20,
    for_squeezenet,
    for_style_transfer,
    for_trec,
    for_waifu2x,
)
from benchmarks.validation.trec_cifarnet import trec_plan

PLANNING_IMAGES = 4000  # of CIFAR-10; half of them verify
BUNDLED_UNSEEN = 256
FEW_PHOTOS = 12

Labelled = tuple[np.ndarray, np.ndarray | None]
Prepare = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class PlanCase:
    """One network, with inputs to plan with and others to judge by.

    Attributes:
        name: of the case.
        path: the ONNX file.
        planning: inputs [n, ...] and labels [n]; None: the plan is lossless and made without.
        unseen: likewise, for the metric and the times.
        metric: ``top1``, ``agreement``, ``nmse`` or ``psnr``.
        budgets: of the plans: largest drops, or smallest PSNR in dB; of a lossless plan 0.
        batch: images of a run.
        options: more of ``CompileOptions``.
        given: plans to measure beside those that are searched, by name.
    """

    name: str
    path: Path
    planning: Labelled | None
    unseen: Labelled
    metric: str
    budgets: Sequence[float]
    batch: int
    options: Mapping[str, object] = field(default_factory=dict)
    given: Mapping[str, ReusePlan] = field(default_factory=dict)

    def batches(self, x: np.ndarray) -> Iterator[np.ndarray]:
        """Inputs in whole batches."""
        return (x[start : start + self.batch] for start in range(0, len(x) - self.batch + 1, self.batch))


@dataclass(frozen=True)
class Sources:
    """Where inputs come from.

    Attributes:
        data: the folder.
        cifar_train: CIFAR-10 with its training set, as ``load_cifar10`` takes it. Plans are then made with training
            images and judged on the whole test set, else made with its second half and judged on its first.
    """

    data: DataFolder
    cifar_train: Path | None = None

    def cifar(self, prepare: Prepare) -> tuple[Labelled, Labelled]:
        """(planning, unseen)."""
        if self.cifar_train is None:
            unseen = self.data.cifar10(0, 5000)
            planning = self.data.cifar10(5000, 5000 + PLANNING_IMAGES)
        else:
            try:
                whole = load_cifar10(self.cifar_train)
            except (ValueError, OSError) as error:
                raise DataError(f"--cifar-train {error}") from None
            unseen = whole.x_test, whole.y_test
            planning = whole.x_train[-PLANNING_IMAGES:], whole.y_train[-PLANNING_IMAGES:]
        return (prepare(planning[0]), planning[1]), (prepare(unseen[0]), unseen[1])

    def photos(self, size: tuple[int, int], prepare: Prepare, count: int | None = None) -> tuple[Labelled, Labelled]:
        """Every second photograph to plan with, the others unseen."""
        x = prepare(self.data.photos(size)[:count])
        return (x[0::2], None), (x[1::2], None)


def _bundled(sources: Sources) -> tuple[Labelled, Labelled]:
    """CIFAR-10 as above, where there are data; else the images that come with the package."""
    if sources.cifar_train is None and isinstance(sources.data, NoData):
        x, labels = cifar10_sample()
        parts = slice(None, -BUNDLED_UNSEEN), slice(-BUNDLED_UNSEEN, None)
        return (x[parts[0]], labels[parts[0]]), (x[parts[1]], labels[parts[1]])
    return sources.cifar(normalise)


def _cifarnet(sources: Sources, name: str, scope: str) -> PlanCase:
    planning, unseen = _bundled(sources)
    budgets = (0.0005, 0.005, 0.02) if scope == "batch" else (0.005, 0.02, 0.04)
    return PlanCase(name, cifarnet_path(), planning, unseen, "top1", budgets, 128, {"scope": scope})


def _cifar_case(model: str, prepare: Prepare, batch: int, budgets: Sequence[float]) -> Callable[..., PlanCase]:
    def make(sources: Sources, name: str) -> PlanCase:
        planning, unseen = sources.cifar(prepare)
        return PlanCase(name, sources.data.model(model), planning, unseen, "top1", budgets, batch)

    return make


def _trec(sources: Sources, name: str) -> PlanCase:
    """Also under the plan that its authors trained it with."""
    make = _cifar_case("trec_cifarnet_cifar10", for_trec, 100, (0.005, 0.02, 0.05))
    return replace(make(sources, name), given={"plan, trained with it": trec_plan(sources.data, "batch")})


def _photo_case(
    model: str,
    size: tuple[int, int],
    prepare: Prepare,
    metric: str,
    budgets: Sequence[float],
    batch: int = 1,
    count: int | None = None,
) -> Callable[..., PlanCase]:
    def make(sources: Sources, name: str) -> PlanCase:
        planning, unseen = sources.photos(size, prepare, count)
        return PlanCase(name, sources.data.model(model), planning, unseen, metric, budgets, batch)

    return make


def _keywords(sources: Sources, name: str) -> PlanCase:
    x, labels = sources.data.keywords()
    path = sources.data.model("mlperf_kws_dscnn")
    return PlanCase(name, path, (x[0::2], labels[0::2]), (x[1::2], labels[1::2]), "top1", (0.02, 0.05), 1)


def _visual_wake_words(sources: Sources, name: str) -> PlanCase:
    with np.load(sources.data.file("mlperf_tiny_eval/vww01_a250.npz"), allow_pickle=False) as images:
        x, labels = for_style_transfer(images["x"]) / np.float32(255), images["y"].astype(np.int64)
    path = sources.data.model("mlperf_vww_mobilenetv1_025_96")
    return PlanCase(name, path, (x[0::2], labels[0::2]), (x[1::2], labels[1::2]), "top1", (0.05, 0.1), 1)


def _lossless(sources: Sources, name: str) -> PlanCase:
    images = sources.data.text_page() if name.endswith("text") else sources.data.photos((896, 896))[:1]
    x = for_squeezenet(images)
    path = sources.data.model(SQUEEZENET)
    return PlanCase(name, path, None, (x, None), "psnr", (0.0,), 1, {"lossless": True})


MAKERS: dict[str, Callable[[Sources, str], PlanCase]] = {
    "cifarnet": lambda sources, name: _cifarnet(sources, name, "image"),
    "cifarnet-batch-scope": lambda sources, name: _cifarnet(sources, name, "batch"),
    "resnet20": _cifar_case(RESNET20, for_resnet20, 128, (0.005, 0.02, 0.05)),
    "trec-cifarnet": _trec,
    "squeezenet": _photo_case(SQUEEZENET, (224, 224), for_squeezenet, "agreement", (0.1, 0.2)),
    "squeezenet-b8": _photo_case(SQUEEZENET, (224, 224), for_squeezenet, "agreement", (0.1, 0.2), 8),
    "squeezenet-text": _lossless,
    "squeezenet-lossless-photo": _lossless,
    "fst_wave": _photo_case(
        "fst_wave", (480, 640), for_style_transfer, "nmse", (0.01, 0.03, 0.1), count=2 * FEW_PHOTOS
    ),
    "waifu2x": _photo_case(WAIFU2X, (128, 128), for_waifu2x, "psnr", (40.0, 35.0, 30.0), count=4 * FEW_PHOTOS),
    "tiny-ic": _cifar_case("mlperf_ic_resnet8_cifar10", for_style_transfer, 1, (0.005, 0.02, 0.05)),
    "tiny-kws": _keywords,
    "tiny-vww": _visual_wake_words,
}


def plan_case(name: str, sources: Sources) -> PlanCase:
    """One of ``MAKERS``."""
    return MAKERS[name](sources, name)
