"""What changes during training: parameters, the optimizer's state, running statistics, hash planes, kept centroids.

What every step changes lies in tensors of the device, which compiled steps read and write in place: on a GPU nothing of
it is copied between steps. Planes, which change rarely, are arrays of this machine's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import tvm

from adr_tvm.errors import DataError
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.train.loss_scaling import LossScaling


class TrainingState:
    """The state of a run.

    Args:
        parameters: initial values float32, by initializer name.
        slots: names of what the optimizer keeps for each parameter; zeros at first.
        statistics: running mean and variance float32 [C] of each batch norm at first, by node name.
        device: where tensors lie; None: in this machine's memory.
        scaling: of the loss; None: it is not scaled.

    Attributes:
        parameters: tensors by name.
        slots: for each parameter its tensors by slot.
        statistics: running mean and variance float32 [C] of each batch norm.
        planes: hash planes of the layers that have reused so far, by layer.
        streams: parts of the table of centroids of each layer whose clusters persist, by layer; as planes change
            they are forgotten.
        device, scaling: as given.
        count: steps taken, skipped ones too.
    """

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        slots: Iterable[str],
        statistics: Mapping[str, tuple[np.ndarray, np.ndarray]],
        device: tvm.runtime.Device | None = None,
        scaling: LossScaling | None = None,
    ) -> None:
        self.device, self.scaling = device, scaling
        self.parameters = {name: tensor_of(value, device) for name, value in parameters.items()}
        self.slots = {
            name: {slot: tensor_of(np.zeros_like(value), device) for slot in slots}
            for name, value in parameters.items()
        }
        self.statistics = {
            name: (tensor_of(mean, device), tensor_of(variance, device))
            for name, (mean, variance) in statistics.items()
        }
        self.planes: dict[str, HashPlanes] = {}
        self.streams: dict[str, dict[str, tvm.runtime.Tensor]] = {}
        self.count = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of everything as arrays, by path: ``parameters/NAME``, ``slots/SLOT/NAME``, ``statistics/mean/NAME``,
        ``planes/planes/LAYER``, ``streams/centroids/LAYER``, ``loss_scaling`` (scale, good steps, skipped), ``count``
        ..."""
        found = {f"parameters/{name}": tensor.numpy() for name, tensor in self.parameters.items()}
        for name, slots in self.slots.items():
            found |= {f"slots/{slot}/{name}": tensor.numpy() for slot, tensor in slots.items()}
        for name, (mean, variance) in self.statistics.items():
            found |= {f"statistics/mean/{name}": mean.numpy(), f"statistics/variance/{name}": variance.numpy()}
        for layer, planes in self.planes.items():
            for part in ("planes", "thresholds", "mu"):
                found[f"planes/{part}/{layer}"] = getattr(planes, part).copy()
        for layer, table in self.streams.items():
            found |= {f"streams/{part}/{layer}": tensor.numpy() for part, tensor in table.items()}
        if self.scaling is not None:
            kept = self.scaling.scale, self.scaling.good, self.scaling.skipped
            found["loss_scaling"] = np.array(kept, np.float64)
        return found | {"count": np.array([self.count], np.int64)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what ``arrays`` gave.

        Raises:
            DataError: something is missing, or has another shape: it is the state of another network.
        """
        expected = self.arrays()
        planes, streams = (_by_layer(arrays, kind) for kind in ("planes", "streams"))
        for path, now in expected.items():
            if path.startswith(("planes/", "streams/")):
                continue
            given = arrays.get(path)
            if given is None or given.shape != now.shape:
                found = "nothing" if given is None else f"shape {list(given.shape)}"
                raise DataError(
                    f"{path}: {found} where {list(now.shape)} is expected: it is of another network or optimizer"
                )
        for name, tensor in self.parameters.items():
            tensor.copyfrom(np.ascontiguousarray(arrays[f"parameters/{name}"]))
            for slot, kept in self.slots[name].items():
                kept.copyfrom(np.ascontiguousarray(arrays[f"slots/{slot}/{name}"]))
        for name, (mean, variance) in self.statistics.items():
            mean.copyfrom(np.ascontiguousarray(arrays[f"statistics/mean/{name}"]))
            variance.copyfrom(np.ascontiguousarray(arrays[f"statistics/variance/{name}"]))
        self.planes = {layer: HashPlanes(**parts) for layer, parts in planes.items()}
        self.streams = {
            layer: {part: tensor_of(value, self.device) for part, value in table.items()}
            for layer, table in streams.items()
        }
        if self.scaling is not None:
            scale, good, skipped = arrays["loss_scaling"].tolist()
            self.scaling = LossScaling(self.scaling.rule, scale, int(good), int(skipped))
        self.count = int(arrays["count"][0])


def _by_layer(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays ``KIND/PART/LAYER`` by layer and part."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for path, value in arrays.items():
        if path.startswith(f"{kind}/"):
            _, part, layer = path.split("/", 2)
            found.setdefault(layer, {})[part] = value
    return found


def tensor_of(array: np.ndarray, device: tvm.runtime.Device | None = None) -> tvm.runtime.Tensor:
    """A tensor of the runtime with a copy of an array, on a device (None: this machine's processor)."""
    return tvm.runtime.tensor(np.asarray(array, order="C"), device)
