"""The last step of a compile run for a microcontroller: from module and plan to a folder of C (``--emit c``).

Beside the C files (``adr_tvm/bare_c/emit.py``) the folder holds ``model.json``, which says what it was made of and what
it takes, and plan and reports as every bundle (``adr_tvm/deploy/bundle.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import tvm

import adr_tvm
from adr_tvm.bare_c.emit import CNetwork, write_c
from adr_tvm.bare_c.files import C_MANIFEST
from adr_tvm.bare_c.footprint import Footprint, flash_excess, measure, ram_excess
from adr_tvm.bare_c.from_relax import graph_of
from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.int8.network import quantised
from adr_tvm.jsonfile import write_json
from adr_tvm.options import CompileOptions
from adr_tvm.plan import ReusePlan
from adr_tvm.progress import progress


def check_operators(mod: tvm.IRModule, checked: CheckedModel) -> None:
    """See that every operator has C code, before a long search.

    Raises:
        ModelError: one has not; all such are named.
    """
    graph_of(mod, checked, ReusePlan(checked.sha256, "none", 0, "none", None, {}))


def c_network(mod: tvm.IRModule, checked: CheckedModel, plan: ReusePlan, blob: bool = False) -> CNetwork:
    """A canonical module under a plan, ready to be written; ``blob``: its constants into a file.

    Raises:
        ModelError: an operator has no C code, or a layer reuses in a way that bare C has not.
    """
    inputs, outputs = (tuple(spec.name for spec in specs) for specs in (checked.inputs, checked.outputs))
    return CNetwork(graph_of(mod, checked, plan), checked.path.name, checked.sha256, inputs, outputs, blob)


class _Batches:
    """Calibration batches by the names of the graph, read anew each time."""

    def __init__(self, network: CNetwork, samples: CalibrationSet) -> None:
        self.names = dict(zip(network.graph.inputs, network.input_names, strict=True))
        self.samples = samples

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for inputs, _ in self.samples:
            yield {name: inputs[given] for name, given in self.names.items()}


def int8_network(network: CNetwork, samples: CalibrationSet) -> tuple[CNetwork, str]:
    """The network in int8, and how it compares with fp32 on the samples.

    Raises:
        ModelError: a layer reuses in a way that int8 has not.
    """
    with progress("quantising", None) as step:
        graph, note = quantised(network.graph, _Batches(network, samples), samples.labels)
        step.advance(1)
    return replace(network, graph=graph), note


def write_c_bundle(folder: Path, network: CNetwork, plan: ReusePlan, options: CompileOptions) -> Footprint:
    """Write all but the reports; returns what it takes.

    Raises:
        MissingDependencyError: the target's compiler is missing, or does not take the sources.
        UsageError: the folder cannot be written.
    """
    footprint = measure(network, write_c(folder, network), options.entry)
    plan.save(folder)
    graph = network.graph
    content = {
        "version": 1,
        "adr_version": adr_tvm.__version__,
        "model": network.model,
        "model_sha256": network.sha256,
        "target": options.entry.name,
        "weights": options.weights,
        "bytes": asdict(footprint),
        "inputs": [asdict(graph.tensors[name]) for name in graph.inputs],
        "outputs": [asdict(graph.tensors[name]) for name in graph.outputs],
        "reuse_layers": [layer.name for layer in graph.reuse_layers],
    }
    write_json(folder / C_MANIFEST, content)
    return footprint


def excess(network: CNetwork, footprint: Footprint, options: CompileOptions) -> str:
    """Which of the user's limits are missed, why, and what would help; empty if none."""
    found = []
    if options.max_ram is not None:
        found.append(ram_excess(network, footprint, options.max_ram))
    if options.max_flash is not None:
        found.append(flash_excess(network, footprint, options.max_flash))
    return "; ".join(each for each in found if each)
