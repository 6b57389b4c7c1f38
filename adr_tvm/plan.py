"""The reuse plan: which layers reuse, how, and why; data, not code.

A saved plan is a folder with ``plan.json`` (decisions, readable and diffable, layers in network order) and
``planes.npz`` (hash planes and thresholds of the layers that hash). ``plan.json`` holds the SHA-256 of
``planes.npz``; equal plans give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

import adr_tvm
from adr_tvm.errors import ModelError
from adr_tvm.jsonfile import read_json, write_bytes, write_json
from adr_tvm.planes_file import HashPlanesLike, LayerPlanes, check_planes, pack_planes, unpack_planes
from adr_tvm.settings import ReuseSetting

FORMAT_VERSION = 1
PLAN_FILE = "plan.json"
PLANES_FILE = "planes.npz"
MAX_PLANES_BYTES = 1 << 30


@dataclass(frozen=True)
class LayerPlan:
    """The decision for one layer.

    Attributes:
        layer: the ONNX node name.
        decision: ``reuse`` or ``dense``.
        setting: how the layer reuses; None where it stays dense.
        reason: why, in words for the report; never empty.
    """

    layer: str
    decision: Literal["reuse", "dense"]
    setting: ReuseSetting | None
    reason: str

    def __post_init__(self) -> None:
        if not self.layer:
            raise ValueError("a layer has no name")
        if not self.reason.strip():
            raise ValueError(f"layer {self.layer!r} has no reason")
        if (self.decision == "reuse") != (self.setting is not None):
            raise ValueError(f"layer {self.layer!r}: a setting goes with the decision reuse and only with it")


@dataclass(frozen=True)
class ReusePlan:
    """Decisions for all layers of one model on one target.

    Attributes:
        model_sha256: of the ONNX file, 64 lower-case hex digits.
        target: what the plan was made for, as the user named it.
        seed: everything random derives from it.
        metric: what the budget is measured in (``top1``, ``agreement``, ``nmse``, ``psnr`` or a user's name).
        budget: largest loss allowed, in units of the metric (a fraction for accuracies); None: not stated.
        layers: by layer name, in network order.
        planes: by layer name, for the layers whose hash has planes (all but ``exact``).
        threads: that the times were taken with which decided; 0: not known.
        dtype: that the network computes in, as in ``CompileOptions``.
        tvm_version, adr_version: of the programs that made the plan.
        version: of the file format.
    """

    model_sha256: str
    target: str
    seed: int
    metric: str
    budget: float | None
    layers: dict[str, LayerPlan]
    planes: Mapping[str, HashPlanesLike] = field(default_factory=dict, compare=False)
    threads: int = 0
    dtype: str = "float32"
    tvm_version: str = field(default_factory=lambda: installed_tvm_version())
    adr_version: str = adr_tvm.__version__
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        wrong = [key for key, layer in self.layers.items() if key != layer.layer]
        if wrong:
            raise ValueError(f"the plan of layer {self.layers[wrong[0]].layer!r} is filed under {wrong[0]!r}")

    @property
    def reused(self) -> dict[str, ReuseSetting]:
        """Settings of the layers that reuse, in network order."""
        return {name: layer.setting for name, layer in self.layers.items() if layer.setting is not None}

    def with_planes(self, planes: Mapping[str, HashPlanesLike]) -> ReusePlan:
        """The same plan with these hash planes."""
        return replace(self, planes=dict(planes))

    def save(self, folder: str | Path) -> Path:
        """Write ``plan.json`` and ``planes.npz`` into ``folder`` (made if missing); returns the first's path.

        Raises:
            ModelError: a layer that hashes has no planes, or planes that do not fit its setting.
            UsageError: the folder cannot be written.
        """
        self._check_planes("the plan")
        data = pack_planes(self.planes, self._hashed)
        content = asdict(_PlanFile.of(self, hashlib.sha256(data).hexdigest()))
        path = Path(folder) / PLAN_FILE
        write_bytes(path.with_name(PLANES_FILE), data)
        write_json(path, content)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ReusePlan:
        """Read a plan from its folder or from its ``plan.json``, and validate all of it.

        Raises:
            ModelError: a file is missing, damaged, of a newer format, or does not fit the other.
        """
        path = Path(path)
        if path.is_dir():
            path = path / PLAN_FILE
        content = read_json(path, _PlanFile, FORMAT_VERSION, ModelError)
        plan = content.plan()
        if len(plan.layers) != len(content.layers):
            raise ModelError(f"{path}: two entries for one layer")
        plan = plan.with_planes(_read_planes(path.with_name(PLANES_FILE), content.planes_sha256, plan._hashed))
        plan._check_planes(str(path.with_name(PLANES_FILE)))
        return plan

    def check_model(self, sha256: str, tvm_version: str | None = None) -> list[str]:
        """Refuse another model; returns notes for the report, such as a plan made with another TVM.

        Args:
            sha256: of the ONNX file at hand.
            tvm_version: the TVM in use; None: the one installed.

        Raises:
            ModelError: the plan was made for another model.
        """
        if sha256 != self.model_sha256:
            raise ModelError(
                f"the plan is for the model with SHA-256 {self.model_sha256[:12]}..., "
                f"this one has {sha256[:12]}...: compile without --plan to make a new plan"
            )
        tvm_version = tvm_version or installed_tvm_version()
        if tvm_version == self.tvm_version:
            return []
        return [
            f"the plan was made with TVM {self.tvm_version}, this is {tvm_version}: "
            "the times that decided it may differ"
        ]

    @property
    def _hashed(self) -> dict[str, int]:
        """Layers that need planes, with their position in the list of layers."""
        return {
            name: position
            for position, (name, layer) in enumerate(self.layers.items())
            if layer.setting is not None and layer.setting.hash != "exact"
        }

    def _check_planes(self, where: str) -> None:
        for name in self._hashed:
            check_planes(name, self.planes.get(name), self.reused[name], where)


def uniform_plan(
    layers: Sequence[str],
    setting: ReuseSetting,
    *,
    reason: str,
    model_sha256: str,
    target: str,
    seed: int,
    metric: str,
    budget: float | None = None,
) -> ReusePlan:
    """One setting for all named layers, as ``--L`` and ``--H`` force; planes come later (``with_planes``)."""
    entries = {name: LayerPlan(name, "reuse", setting, reason) for name in layers}
    return ReusePlan(model_sha256, target, seed, metric, budget, entries)


def installed_tvm_version() -> str:
    """Version of the installed TVM, without importing it; "none" where there is none."""
    try:
        return metadata.version("apache-tvm")
    except metadata.PackageNotFoundError:
        return "none"


@dataclass(kw_only=True)
class _PlanFile:
    """The fields of ``plan.json``, in the order they are written."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    version: int
    adr_version: str
    tvm_version: str
    model_sha256: str
    target: str
    threads: int = 0
    dtype: str = "float32"
    seed: int
    metric: str
    budget: float | None
    planes_sha256: str
    layers: list[LayerPlan]

    def __post_init__(self) -> None:
        for digest in (self.model_sha256, self.planes_sha256):
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{digest[:80]!r} is not a SHA-256 in lower-case hex")

    @classmethod
    def of(cls, plan: ReusePlan, planes_sha256: str) -> _PlanFile:
        return cls(
            version=plan.version,
            adr_version=plan.adr_version,
            tvm_version=plan.tvm_version,
            model_sha256=plan.model_sha256,
            target=plan.target,
            threads=plan.threads,
            dtype=plan.dtype,
            seed=plan.seed,
            metric=plan.metric,
            budget=plan.budget,
            planes_sha256=planes_sha256,
            layers=list(plan.layers.values()),
        )

    def plan(self) -> ReusePlan:
        return ReusePlan(
            model_sha256=self.model_sha256,
            target=self.target,
            threads=self.threads,
            dtype=self.dtype,
            seed=self.seed,
            metric=self.metric,
            budget=self.budget,
            layers={entry.layer: entry for entry in self.layers},
            tvm_version=self.tvm_version,
            adr_version=self.adr_version,
            version=self.version,
        )


def _read_planes(path: Path, sha256: str, positions: Mapping[str, int]) -> dict[str, LayerPlanes]:
    try:
        if path.stat().st_size > MAX_PLANES_BYTES:
            raise ModelError(f"{path} is larger than {MAX_PLANES_BYTES >> 20} MiB: not a file this program wrote")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}, which belongs to the plan: {error.strerror or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelError(
            f"{path} does not belong to this plan: SHA-256 {found[:12]}..., the plan says {sha256[:12]}..."
        )
    return unpack_planes(data, positions, str(path))
