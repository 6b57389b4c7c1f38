"""Layers to measure reuse on: the compiled call, the input of a photograph, and inputs of others to fit planes to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import HashPlanes, make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.settings import ReuseSetting
from benchmarks.activations import InnerTensors
from benchmarks.networks import samples
from benchmarks.synthetic import Prototype, convolution, smooth_image
from benchmarks.validation.data_folder import DataFolder

FIT_PHOTOS = 8
FIT_VECTORS = 16_384  # of each segment, from all photographs together


@dataclass(frozen=True, eq=False)
class LayerCase:
    """One layer.

    Attributes:
        network, layer: names.
        call: the dense call in the canonical module, epilogue included.
        geometry: its shapes.
        target: TVM's.
        x: the measured input, float32 [1, H, W, C].
        others: what planes are fitted to, likewise.
        prototype: what an early prototype reached on this layer.
    """

    network: str
    layer: str
    call: Any
    geometry: ConvGeometry
    target: Any
    x: np.ndarray
    others: list[np.ndarray]
    prototype: Prototype | None = None

    def planes(self, setting: ReuseSetting, seed: int = 0) -> HashPlanes | None:
        """Planes for a setting, fitted to a sample of the vectors of the other inputs."""
        if setting.hash == "exact":
            return None
        g, rng = self.geometry, np.random.default_rng(seed)
        statistics = VectorStatistics(g.segments(setting), g.vector_length(setting), seed)
        most = FIT_VECTORS // len(self.others)
        for x in self.others:
            vectors = neuron_vectors(x, g, setting)
            if len(vectors) > most:
                vectors = vectors[np.sort(rng.choice(len(vectors), most, replace=False))]
            statistics.update(vectors)
        return make_planes(setting.hash, setting.H, statistics, seed)


def layers_of(name: str, path: Path, data: DataFolder, layers: Sequence[str], photo: int) -> Iterator[LayerCase]:
    """Layers of one of ``benchmarks.networks.NAMES``.

    Args:
        path: its model.
        layers: names; empty: all that reuse and have a window of more than one pixel and 16 channels.
        photo: which of its samples to measure on; planes are fitted to the others among the first few. A network
            with a single sample has none, and only lossless settings can be measured.

    Raises:
        UsageError: there is no such layer or sample.
    """
    from adr_tvm._tvm import static_shape
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.options import CompileOptions
    from adr_tvm.passes.mark_candidates import find_candidates
    from benchmarks.networks import input_name

    inputs = samples(name, data, max(photo, FIT_PHOTOS) + 1)
    if photo >= len(inputs):
        raise UsageError(f"--photo is {photo}, but {name} has {len(inputs)} inputs, counted from 0")
    fitted = [index for index in range(len(inputs)) if index != photo][:FIT_PHOTOS]
    shape = (1, *inputs.shape[1:])
    loaded = LoadedNetwork(path, CompileOptions(input_shapes={input_name(path): shape}))
    found = {c.layer: c for c in find_candidates(loaded.mod["main"], "main", loaded.rules) if not c.reason}
    if unknown := [each for each in layers if each not in found]:
        raise UsageError(f"{name} has no layer {unknown[0]!r} that could reuse; it has {', '.join(found)}")
    nodes = {node.name: node.input[0] for node in loaded.checked.proto.graph.node}
    chosen = [found[each] for each in layers] or [c for c in found.values() if c.geometry and _worth(c.geometry)]
    inner = InnerTensors(loaded.checked.proto, [nodes[c.layer] for c in chosen])
    tensors = {index: inner(inputs[index : index + 1]) for index in [photo, *fitted]}
    for c in chosen:
        assert c.geometry is not None  # candidates without a geometry carry a reason
        at = static_shape(c.call.args[0])
        x, *others = (_channels_last(tensors[index][nodes[c.layer]]).reshape(at) for index in [photo, *fitted])
        yield LayerCase(name, c.layer, c.call, c.geometry, loaded.target, x, others)


def synthetic_layer(prototype: Prototype) -> LayerCase:
    """A layer of ``benchmarks.synthetic``; its planes are fitted to the measured input, as those of the prototypes."""
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.options import CompileOptions
    from adr_tvm.passes.mark_candidates import find_candidates

    with tempfile.TemporaryDirectory(prefix="adr-synthetic-") as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(convolution(prototype), path)
        loaded = LoadedNetwork(path, CompileOptions())
    (c,) = find_candidates(loaded.mod["main"], "main", loaded.rules)
    assert c.geometry is not None
    x = smooth_image(prototype.size, prototype.C)
    return LayerCase("synthetic", prototype.name, c.call, c.geometry, loaded.target, x, [x], prototype)


def _worth(geometry: ConvGeometry) -> bool:
    return geometry.KH * geometry.KW > 1 and geometry.C >= 16


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x
