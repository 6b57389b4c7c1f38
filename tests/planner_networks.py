"""Tiny networks, data with repetition, and machines that exist on paper, for tests of the planner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from onnx import helper
from onnx_graphs import make_model, save, weights_of

from adr_tvm._tvm import cpu_target
from adr_tvm.build import build_module, canonical_module
from adr_tvm.data.calibration import CalibrationSet, open_calibration
from adr_tvm.frontend.onnx_model import CheckedModel, check_model
from adr_tvm.passes.mark_candidates import CandidateRules
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.options import SearchOptions
from adr_tvm.planner.search import Outcome, evaluate, search
from adr_tvm.report.results import Timings
from adr_tvm.settings import TABLES

TARGET = cpu_target()
# On such a machine even tiny layers are predicted to gain.
SLOW = CostModel(
    {"dense flops": 1e-7, "product flops": 1e-7, "vectors": 1e-9, "gathered": 1e-9, "segment entries": 1e-9}
    | {f"adds {table}": 1e-9 for table in TABLES}
)


class PaperTimes(Timings):
    """Seconds that follow from the key alone: dense layers take 1 s, reuse less, the more bits the longer; a product
    table of 8 bits takes 0.05 s off.

    Args:
        reuse: of a layer with reuse, before its bits; above 1 nothing pays.
        network: of the network with reuse; dense it takes 1 s.
        network_at_least: what noise leaves certain of that; None: there is no noise.
        in_network: of a layer with reuse in whole runs; None: as alone.
    """

    def __init__(
        self,
        reuse: float = 0.3,
        network: float = 0.6,
        in_network: float | None = None,
        network_at_least: float | None = None,
    ):
        super().__init__()
        self.reuse, self.network, self.in_network = reuse, network, in_network
        self.network_at_least = network if network_at_least is None else network_at_least

    def get(self, key: str) -> float | None:
        known = super().get(key)
        if known is not None or key.startswith(("search|", "cost|")):
            return known
        last = key.rsplit("|", 1)[-1]
        if last == "dense":
            return 1.0
        if key.startswith("network|main "):
            return self.network_at_least if last == "at least" else self.network
        if self.in_network is not None and "|in network|" in key:
            return self.in_network
        bits = int(last.split("-H")[1].split("-")[0])
        return self.reuse + 0.01 * bits + 0.001 * ("+gain" in last) - 0.05 * ("+int8" in last)


@dataclass(frozen=True)
class Network:
    """A canonical module with the model it came from."""

    mod: tvm.IRModule
    checked: CheckedModel

    def calibration(self, data, batch_size=8, labels_name=None) -> CalibrationSet:
        """Samples for the network; whole batches where its batch is fixed."""
        fixed = isinstance(self.checked.inputs[0].shape[0], int)
        return open_calibration(data, self.checked.inputs, labels_name, batch_size, whole_batches=fixed)

    def search(self, data, timings=None, rules=None, batch_size=8, labels_name=None, cost=SLOW, **options) -> Outcome:
        """Search; ``data`` None leaves lossless reuse only."""
        samples = None if data is None else self.calibration(data, batch_size, labels_name)
        found = SearchOptions(**options)
        return search(self.mod, self.checked, rules or CandidateRules(), samples, TARGET, found, timings, cost)

    def evaluate(self, plan, data, timings=None, **options) -> Outcome:
        """Measure a plan."""
        samples = None if data is None else self.calibration(data)
        return evaluate(
            self.mod, self.checked, CandidateRules(), plan, samples, TARGET, SearchOptions(**options), timings
        )


def network(model: onnx.ModelProto, folder: Path) -> Network:
    """Import a model."""
    checked = check_model(save(model, folder))
    return Network(canonical_module(checked, TARGET), checked)


def classifier() -> onnx.ModelProto:
    """x [N, 4, 8, 8] -> two convolutions, mean, dense -> y [N, 5]."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "fc", transB=1),
    ]
    weights = weights_of(w1=(8, 4, 3, 3), w2=(8, 8, 3, 3), w3=(5, 8))
    return make_model(nodes, {"x": ["N", 4, 8, 8]}, {"y": ["N", 5]}, weights)


def image_to_image(batch: int | str = "N") -> onnx.ModelProto:
    """x [N, 4, 8, 8] -> one convolution -> y [N, 6, 8, 8]."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])
    return make_model([node], {"x": [batch, 4, 8, 8]}, {"y": [batch, 6, 8, 8]}, weights_of(w=(6, 4, 3, 3)))


def images(count: int, noise: float = 0.02) -> np.ndarray:
    """[count, 4, 8, 8]: flat patches of three kinds, with a little noise."""
    rng = np.random.default_rng(3)
    kinds = rng.standard_normal((3, 4))
    patches = kinds[rng.integers(3, size=(count, 4, 4))].repeat(2, axis=1).repeat(2, axis=2).transpose(0, 3, 1, 2)
    return (patches + noise * rng.standard_normal(patches.shape)).astype("float32")


_built: dict[tvm_ffi.StructuralKey, tvm.runtime.Executable] = {}


def _build_once(
    mod: tvm.IRModule, target: tvm.target.Target, _dump: Path | None = None, precision: None = None, hold: bool = False
) -> tvm.runtime.Executable:
    assert precision is None and not hold, "what is built once is built without options"
    key = tvm_ffi.StructuralKey(mod)
    if key not in _built:
        _built[key] = build_module(mod, target)
    return _built[key]


@pytest.fixture
def slow_machine():
    """Equal layers are compiled once."""
    with (
        mock.patch("adr_tvm.planner.layer_kernel.build_module", _build_once),
        mock.patch("adr_tvm.build.build_module", _build_once),
    ):
        yield
