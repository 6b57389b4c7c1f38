"""What a compile run found: the numbers behind the terminal table, ``report.html`` and ``report.json``.

Times are milliseconds, errors are NMSE unless named otherwise, ratios and accuracies are fractions. None
means not measured. ``timings.json`` keeps every measured time, so that a search can be repeated exactly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from adr_tvm.errors import DataError, ModelError
from adr_tvm.jsonfile import read_json, write_json
from adr_tvm.settings import ReuseSetting

FORMAT_VERSION = 1
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Candidate:
    """A setting tried for one layer.

    Attributes:
        setting: what was tried.
        time_ms: of the layer with this setting.
        error: NMSE at the network's output, this layer alone reusing.
        r_c: clusters / vectors.
        chosen: whether the plan took it.
        pareto: whether no other candidate is both faster and more accurate.
        predicted_ms: what the cost model said of ``time_ms``.
    """

    setting: ReuseSetting
    time_ms: float | None
    error: float | None
    r_c: float | None
    chosen: bool = False
    pareto: bool = False
    predicted_ms: float | None = None


@dataclass(frozen=True)
class LayerResult:
    """One layer.

    Attributes:
        layer: the ONNX node name.
        op: operator kind, ``conv2d`` or ``dense``.
        geometry: such as "56x56x64 -> 64, 3x3/1".
        decision, setting, reason: as in the plan.
        macs_dense, macs_reuse: multiply-adds of one image (reuse: hashing and products on calibration).
        time_dense_ms, time_reuse_ms: inside the network.
        predicted_ms: what the cost model expected for the setting.
        predicted_dense_ms: and for the dense layer.
        tuned_speedup: time of its kernel with the default schedule / with the tuned one that it has (lossless: of the
            dense kernel whose schedule it shares); None: it has the default.
        clusters, vectors: of one image on average.
        r_c: clusters / vectors.
        nmse_layer: of the layer's own output.
        output_error: NMSE at the network's output, this layer alone reusing (sensitivity).
        candidates: what was tried.
    """

    layer: str
    op: str
    geometry: str
    decision: Literal["reuse", "dense"]
    setting: ReuseSetting | None
    reason: str
    macs_dense: int
    macs_reuse: int | None = None
    time_dense_ms: float | None = None
    time_reuse_ms: float | None = None
    predicted_ms: float | None = None
    predicted_dense_ms: float | None = None
    tuned_speedup: float | None = None
    clusters: float | None = None
    vectors: int | None = None
    r_c: float | None = None
    nmse_layer: float | None = None
    output_error: float | None = None
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def speedup(self) -> float | None:
        """Dense time / reuse time."""
        return _ratio(self.time_dense_ms, self.time_reuse_ms)


@dataclass(frozen=True)
class NetworkResult:
    """The whole network.

    Attributes:
        model, model_sha256: name and hash of the ONNX file.
        target, cpu, threads: what was compiled for and measured on; cpu is empty where nothing was measured.
        seed: of everything random.
        metric: ``top1``, ``agreement``, ``nmse``, ``psnr`` or the name of a user's function.
        budget: largest drop allowed (``nmse``: ceiling; ``psnr``: floor in dB); None: not stated.
        drop: measured on the held-back images (``nmse``, ``psnr``: the value itself).
        bound: one-sided 90 % bound of ``drop``.
        n_images: held-back images the drop was measured on.
        images_needed: images at which the bound could meet the budget.
        dense_ms, reuse_ms: one run of the whole network, dense and as compiled.
        onnxruntime_ms: the same under ONNX Runtime.
        max_abs_error: of the dense network against ONNX Runtime, relative to the largest |output|.
        layers: in network order.
        notes: for the reader, one sentence each.
        predicted: whether the times are a cost model's, not measured; they are the layers' alone then.
        cost_model: where the coefficients came from that pruned the search; empty without one.
        cost_model_sha256: of what its predictions depend on.
        version: of the file format.
    """

    model: str
    model_sha256: str
    target: str
    cpu: str
    threads: int
    seed: int
    metric: str
    budget: float | None
    drop: float | None = None
    bound: float | None = None
    n_images: int = 0
    images_needed: int | None = None
    dense_ms: float | None = None
    reuse_ms: float | None = None
    onnxruntime_ms: float | None = None
    max_abs_error: float | None = None
    layers: list[LayerResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    predicted: bool = False
    cost_model: str = ""
    cost_model_sha256: str = ""
    version: int = FORMAT_VERSION

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    @property
    def speedup(self) -> float | None:
        """Dense time / reuse time of the network."""
        return _ratio(self.dense_ms, self.reuse_ms)

    @property
    def reused(self) -> list[LayerResult]:
        """Layers that reuse."""
        return [layer for layer in self.layers if layer.decision == "reuse"]

    def save(self, folder: str | Path) -> Path:
        """Write ``report.json`` into ``folder``; numbers that are not finite are written as null.

        Raises:
            UsageError: the folder cannot be written.
        """
        path = Path(folder) / REPORT_FILE
        write_json(path, _finite(asdict(self)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> NetworkResult:
        """Read ``report.json`` (or the folder that holds it).

        Raises:
            ModelError: the file is missing or damaged, or of a newer format.
        """
        path = Path(path)
        return read_json(path / REPORT_FILE if path.is_dir() else path, cls, FORMAT_VERSION, ModelError)


class Timings:
    """Measured times in seconds by key; the same keys give the same file, whatever the order they came in."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._seconds)

    def get(self, key: str) -> float | None:
        """The time of ``key`` in seconds, or None if it was not measured."""
        return self._seconds.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Record a time.

        Raises:
            ValueError: it is not positive or not finite.
        """
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"the time of {key!r} is {seconds} s")
        self._seconds[key] = float(seconds)

    def save(self, path: str | Path) -> None:
        """Write a flat JSON object, keys sorted.

        Raises:
            UsageError: the file cannot be written.
        """
        write_json(Path(path), dict(sorted(self._seconds.items())))

    @classmethod
    def load(cls, path: str | Path) -> Timings:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or damaged, or holds something else than times.
        """
        timings = cls()
        for key, seconds in read_json(Path(path), dict[str, float], None, DataError).items():
            try:
                timings.put(key, seconds)
            except ValueError as error:
                raise DataError(f"{path}: {error}") from error
        return timings


def _ratio(dense: float | None, reuse: float | None) -> float | None:
    return dense / reuse if dense is not None and reuse else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
