"""Running a compiled network: ``adr_tvm.load(folder)``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tvm_ffi import from_dlpack, get_global_func

from adr_tvm.cuda.graph import CudaGraphs, GraphDriver
from adr_tvm.data.tensor_spec import TensorSpec
from adr_tvm.deploy.bundle import WEIGHTS_FILE, Manifest, ReuseLayer, file_sha256, library_of
from adr_tvm.deploy.captured import CapturedEntries
from adr_tvm.deploy.device import OnCpu, OnCuda, cuda_device
from adr_tvm.deploy.processor import missing_extensions, processor_name
from adr_tvm.deploy.tensors import Array, Feed, aligned, is_torch, own_outputs
from adr_tvm.deploy.threads import set_threads
from adr_tvm.errors import ModelError, UsageError
from adr_tvm.plan import ReusePlan

if TYPE_CHECKING:
    import tvm

Outputs: TypeAlias = "Array | tuple[Array, ...]"

MOST_SHAPES = 4  # TVM's allocator keeps the memory of every size it ever gave out; after so many it is emptied


@dataclass(frozen=True, eq=False)
class LayerCounts:
    """What one reuse layer counted in one call.

    Attributes:
        clusters: int [units], segments summed. A unit is an image (scope ``image``) or the call (``batch``).
            0 where a look at some rows found too little to go on counting (hash ``exact``).
        reused: bool [units]; False where the unit held too many clusters and ran dense.
        vectors: neuron vectors of a unit, segments summed.
    """

    clusters: np.ndarray
    reused: np.ndarray
    vectors: int

    @property
    def r_c(self) -> float:
        """Remaining ratio, clusters / vectors, over all units; where nothing was counted, nothing is saved."""
        remaining = np.where(self.clusters == 0, self.vectors, self.clusters)
        return float(remaining.mean()) / self.vectors


def load(folder: str | Path, threads: int | None = None, cuda_graph: bool = False) -> ReuseModel:
    """Load a bundle. It holds machine code: load only what you would also execute.

    Args:
        folder: what ``adr-compile`` wrote.
        threads: for all models of this process; None: ``TVM_NUM_THREADS``, else all physical cores.
        cuda_graph: of a bundle for CUDA: record the kernels of the first call with inputs of some shapes as a graph,
            which later calls start as a whole.

    Raises:
        MissingDependencyError: the bundle is for CUDA, and there is no GPU, driver or CUDA runtime library.
        ModelError: a file is missing or damaged, the bundle was compiled for another processor, or no graph can be
            made of the network.
        UsageError: ``threads`` makes no sense, or TVM's runtime already runs with another number; or ``cuda_graph`` is
            asked of a bundle that is not for CUDA.
    """
    manifest, plan, library = _read(Path(folder))
    if cuda_graph and manifest.device != "cuda":
        raise UsageError(f"cuda_graph is for bundles for CUDA, and {folder} is for {manifest.target}")
    weights = _read_weights(Path(folder) / WEIGHTS_FILE, manifest.weights_sha256)
    set_threads(threads)
    import tvm
    from tvm.runtime.vm import VirtualMachine

    device = cuda_device() if manifest.device == "cuda" else tvm.cpu()
    try:
        machine = VirtualMachine(tvm.runtime.load_module(str(library)), device)
        where = OnCuda(device) if manifest.device == "cuda" else OnCpu()
        return ReuseModel(manifest, plan, machine, weights, where, CudaGraphs() if cuda_graph else None)
    except (RuntimeError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load {library} ({reason}): compile it again on this machine") from error


def _read(folder: Path) -> tuple[Manifest, ReusePlan, Path]:
    """All that can be checked before machine code is loaded: a damaged library would crash the process."""
    manifest, plan, library = Manifest.load(folder), ReusePlan.load(folder), library_of(folder)
    reused = list(plan.reused)
    if plan.model_sha256 != manifest.model_sha256 or reused != [each.layer for each in manifest.reuse_layers]:
        raise ModelError(f"{folder} is damaged, plan and manifest are not of one bundle: compile it again")
    if file_sha256(library) != manifest.library_sha256:
        raise ModelError(f"{library} is damaged, its SHA-256 is not that of the manifest: compile it again")
    missing = missing_extensions(manifest.cpu_features)
    if missing:
        raise ModelError(
            f"{folder} is compiled for {manifest.cpu}, which has {', '.join(missing)}; "
            f"this processor, {processor_name()}, has not: compile it again on this machine"
        )
    return manifest, plan, library


def _read_weights(path: Path, sha256: str) -> np.ndarray:
    """The weights, uint8; read once, and never in memory twice."""
    try:
        memory = aligned(path.stat().st_size)
        with path.open("rb") as file:
            read = file.readinto(memory.data)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if read != memory.size or hashlib.sha256(memory.data).hexdigest() != sha256:
        raise ModelError(f"{path} is damaged, its SHA-256 is not that of the manifest: compile it again")
    return memory


class ReuseModel:
    """A loaded network. Calls take and return NumPy arrays or torch tensors on the CPU.

    Inputs are passed in order or by name. Nothing is converted; an input is copied only where the kernels
    cannot read it in place (not contiguous, read-only, or not at a multiple of 64 bytes). Results are torch
    tensors if an input is one, else NumPy arrays; a network with several outputs returns a tuple. Results are
    the caller's: the next call leaves them alone.

    Not thread-safe: give each thread a model of its own. Each such thread then has its own worker threads.

    Attributes:
        manifest: what the bundle says of itself.
        plan: which layers reuse, how and why.
        inputs, outputs: name, shape and type; a dimension that is a string takes any size from 1 on.
    """

    def __init__(
        self,
        manifest: Manifest,
        plan: ReusePlan,
        machine: tvm.runtime.vm.VirtualMachine,
        weights: np.ndarray,
        device: OnCpu | OnCuda,
        graphs: GraphDriver | None = None,
    ) -> None:
        self.manifest, self.plan = manifest, plan
        self.inputs: tuple[TensorSpec, ...] = tuple(manifest.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(manifest.outputs)
        self._names = [spec.name for spec in self.inputs]
        self._feed = Feed(self.inputs)
        self._device = device
        (self._weights,) = device.send([from_dlpack(weights)])
        self._release = get_global_func("vm.builtin.memory_manager.clear")
        names = ("main", "dense", *(("main_counts",) if manifest.reuse_layers else ()))
        self._entries = {name: machine[name] for name in names}
        self._captured: CapturedEntries | None = None
        if graphs is not None and isinstance(device, OnCuda):
            self._captured = CapturedEntries(machine, device.device, self._weights, graphs, names)

    def __call__(self, *arrays: Array, **by_name: Array) -> Outputs:
        """Run the network with reuse.

        Raises:
            TypeError: an input is missing, unknown or of the wrong type.
            ValueError: an input has the wrong shape.
        """
        return self._run("main", self._ordered(arrays, by_name))

    def dense(self, *arrays: Array, **by_name: Array) -> Outputs:
        """Run the network without reuse; everything else is as in a plain call."""
        return self._run("dense", self._ordered(arrays, by_name))

    def run_with_counts(self, *arrays: Array, **by_name: Array) -> tuple[Outputs, dict[str, LayerCounts]]:
        """Run the network with reuse; also what each reuse layer counted, in network order."""
        given = self._ordered(arrays, by_name)
        if not self.manifest.reuse_layers:
            return self._run("main", given), {}
        tensors = self._tensors(given)
        result, stats = self._call("main_counts", tensors)
        batch = given[0].shape[0] if given[0].ndim else 1
        counts = {
            layer.layer: _counts(layer, each, batch)
            for layer, each in zip(self.manifest.reuse_layers, self._device.fetch(stats), strict=True)
        }
        return self._owned(result, tensors, given), counts

    def _ordered(self, arrays: Sequence[Any], by_name: dict[str, Any]) -> Sequence[Any]:
        """The inputs in the network's order."""
        names = self._names
        if not by_name and len(arrays) == len(names):
            return arrays
        expected = ", ".join(map(repr, names))
        if len(arrays) > len(names):
            raise TypeError(f"{len(arrays)} inputs given, expected {len(names)}: {expected}")
        given = dict(zip(names, arrays, strict=False))
        for name in by_name:
            if name not in names:
                raise TypeError(f"input {name!r} is not known, expected {expected}")
            if name in given:
                raise TypeError(f"input {name!r} is given twice, by position and by name")
        given |= by_name
        for name in names:
            if name not in given:
                raise TypeError(f"input {name!r} is missing, expected {expected}")
        return [given[name] for name in names]

    def _tensors(self, given: Sequence[Any]) -> list[Any]:
        """The inputs for compiled code."""
        tensors = self._feed(given)
        if len(self._feed.shapes) > MOST_SHAPES:
            if self._captured is not None:
                self._captured.clear()
            self._release()
            self._feed.shapes.clear()
        return tensors

    def _run(self, entry: str, given: Sequence[Any]) -> Outputs:
        tensors = self._tensors(given)
        return self._owned(self._call(entry, tensors), tensors, given)

    def _call(self, entry: str, tensors: Sequence[Any]) -> Any:
        if self._captured is not None:
            return self._captured(entry, tensors)
        return self._entries[entry](*self._device.send(tensors), self._weights)

    def _owned(self, result: Any, tensors: Sequence[Any], given: Sequence[Any]) -> Outputs:
        outputs = [result] if len(self.outputs) == 1 and hasattr(result, "__dlpack__") else result
        owned = own_outputs(self._device.fetch(outputs), tensors, any(map(is_torch, given)))
        return owned[0] if len(owned) == 1 else tuple(owned)


def _counts(layer: ReuseLayer, stats: Any, batch: int) -> LayerCounts:
    array = np.from_dlpack(stats)
    vectors = layer.vectors if layer.scope == "image" else layer.vectors * batch
    return LayerCounts(array[:, 0].astype(np.int64), array[:, 1].astype(bool), vectors)
