"""The plan that a network is fine-tuned under: given, or found by the planner on a sample of the training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_limits import Limits
from adr_tvm.frontend.onnx_load import load_proto
from adr_tvm.plan import LayerPlan, ReusePlan
from adr_tvm.progress import get_log
from adr_tvm.report.formats import setting_text
from adr_tvm.train.options import TrainOptions

if TYPE_CHECKING:
    from adr_tvm.data.training_data import TrainingData

KEPT = "initial-plan"
"""Folder, in that of the run, with the plan that it started under; a resumed run takes it from there."""

SAMPLES = 1024
LABELS = "adr_tvm.labels"


def starting_plan(model: Path, data: TrainingData, options: TrainOptions, folder: Path) -> ReusePlan:
    """The plan of a run; it is kept in the run's folder.

    Args:
        model: the ONNX file that training starts from.
        data: to plan on.
        options: with ``plan`` or ``max_drop``.
        folder: of the run.

    Raises:
        ModelError: the plan is missing, damaged or of another model.
        DataError: the images do not fit the model.
    """
    kept = folder / KEPT
    if options.resume:
        return ReusePlan.load(kept)
    if options.plan is None:
        plan = found_plan(model, data, options)
    else:
        plan = ReusePlan.load(options.plan)
        for note in plan.check_model(load_proto(model, Limits())[1]):
            get_log().warning("%s", note)
    plan.save(kept)
    return plan


def found_plan(model: Path, data: TrainingData, options: TrainOptions) -> ReusePlan:
    """A plan that loses up to ``options.max_drop`` of top-1 accuracy before fine-tuning, as ``adr-compile`` finds it.

    Scaling products by ``gain`` has no gradient, so layers do without it.

    Raises:
        ModelError: the model is bad or does not take images.
        DataError: the images do not fit it.
    """
    from adr_tvm.deploy.threads import set_threads
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.options import CompileOptions
    from adr_tvm.planner.cost_file import find_cost_model
    from adr_tvm.planner.options import SearchOptions
    from adr_tvm.planner.search import search
    from adr_tvm.schedules.register_tile import isa_of

    assert options.max_drop is not None
    wishes = CompileOptions(
        labels_name=LABELS, metric="top1", max_drop=options.max_drop, skip=options.skip, only=options.only,
        seed=options.seed, threads=options.threads,
    )  # fmt: skip
    network = LoadedNetwork(model, wishes)
    samples = network.open_calibration(planning_sample(network.checked.inputs, data, options))
    cost = find_cost_model(None, set_threads(options.threads), isa_of(network.target).lanes)
    asked = SearchOptions(metric="top1", max_drop=options.max_drop, seed=options.seed)
    found = search(network.mod, network.checked, network.rules, samples, network.target, asked, cost=cost).plan
    layers = {name: _without_gain(layer) for name, layer in found.layers.items()}
    for name, layer in layers.items():
        what = "dense" if layer.setting is None else setting_text(layer.setting)
        get_log().info("planned %s: %s; %s", name, what, layer.reason)
    return replace(found, layers=layers)


def planning_sample(inputs: tuple, data: TrainingData, options: TrainOptions) -> dict[str, np.ndarray]:
    """Up to ``SAMPLES`` training images as the network takes them, by input name, with their labels.

    Raises:
        ModelError: the network does not take images.
        DataError: the images are smaller than its input.
    """
    from adr_tvm.train.augmentation import Preparation

    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(dim, int) for dim in shape[1:]):
        raise ModelError(f"the network's inputs are {[list(each.shape) for each in inputs]}; images are expected")
    channels, height, width = (int(dim) for dim in shape[1:])
    mean, std = (data.mean, data.std) if options.mean is None else (options.mean, options.std)
    preparation = Preparation(height, width, mean, std, False, options.padding)
    preparation.check(data.shape, channels, data.source)
    count = len(data.train.labels)
    chosen = np.sort(np.random.default_rng(options.seed).permutation(count)[:SAMPLES])
    images = preparation.testing(data.train.read(chosen))
    return {inputs[0].name: images, LABELS: data.train.labels[chosen].astype(np.int64)}


def _without_gain(layer: LayerPlan) -> LayerPlan:
    if layer.setting is None or not layer.setting.gain:
        return layer
    return replace(layer, setting=replace(layer.setting, gain=False), reason=f"{layer.reason} (with gain)")
