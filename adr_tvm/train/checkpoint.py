"""Checkpoints: everything that a run needs to go on to the same curve, in one safetensors file. Never pickle.

The tensors are the state's arrays by path (parameters, optimizer, running statistics, hash planes, kept centroids).
The metadata hold one entry, ``adr_tvm``: JSON of ``Progress``, with the SHA-256 of the tensors. A file is written
beside its goal, flushed to the disk and renamed: whenever the process ends, the last whole checkpoint is there.

safetensors: 8 bytes length of the header, the header (JSON: dtype, shape and place of each tensor), the data. It is
written here tensor by tensor, since the library's writer copies all of them first, and read by the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adr_tvm.errors import DataError, MissingDependencyError, UsageError
from adr_tvm.train.controller import ControllerState

LAST, BEST = "last.safetensors", "best.safetensors"
FORMAT_VERSION = 1
ENTRY = "adr_tvm"
_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8"}


@dataclass
class Progress:
    """Where a run is, apart from its tensors.

    Attributes:
        step: steps taken.
        network, data: what is trained, on what: SHA-256 of the ONNX file, and a fingerprint of the data.
        options: those that the curves depend on (``TrainOptions.curve``).
        controller: of the stages; holds what was measured.
        log_bytes: length of the metrics log.
        accuracy, best_accuracy: on the test part, after the last epoch and at its best.
        before: accuracies on it before the first step of fine-tuning, with the plan (``reuse``) and ``dense``.
        dense_accuracy: after the last epoch of fine-tuning, without reuse.
        loss_sum, correct, busy: of the current epoch: sum of losses, right answers, seconds of steps.
        unknown: steps of the current epoch that were skipped without a finite loss.
        seconds: spent so far, by phase.
    """

    step: int = 0
    network: str = ""
    data: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    controller: ControllerState = field(default_factory=ControllerState)
    log_bytes: int = 0
    accuracy: float | None = None
    best_accuracy: float | None = None
    before: dict[str, float] = field(default_factory=dict)
    dense_accuracy: float | None = None
    loss_sum: float = 0.0
    correct: int = 0
    busy: float = 0.0
    unknown: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = FORMAT_VERSION
    sha256: str = ""

    __pydantic_config__: ClassVar = {"extra": "forbid"}


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], progress: Progress) -> None:
    """Write a checkpoint in place of the one at ``path``.

    Raises:
        UsageError: the file cannot be written.
    """
    names = sorted(arrays)
    digest = hashlib.sha256()
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        data = np.ascontiguousarray(arrays[name])
        digest.update(data.data)
        header[name] = {
            "dtype": _DTYPES[data.dtype.name],
            "shape": list(data.shape),
            "data_offsets": [offset, offset + data.nbytes],
        }
        offset += data.nbytes
    progress.sha256 = digest.hexdigest()
    header["__metadata__"] = {ENTRY: json.dumps(asdict(progress), allow_nan=False)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    np.ascontiguousarray(arrays[name]).tofile(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """Read a checkpoint.

    Raises:
        DataError: it is missing, damaged or of a newer format; names it.
        MissingDependencyError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{path}: needs safetensors: pip install 'adr-tvm[train]'") from error

    if not path.is_file():
        raise DataError(f"there is no checkpoint {path}: start without --resume")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}; {_WAY_ON}") from error
    progress = _progress(path, metadata.get(ENTRY))
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    if digest.hexdigest() != progress.sha256:
        raise DataError(f"{path} is damaged: its tensors do not have the SHA-256 they were written with; {_WAY_ON}")
    return arrays, progress


_WAY_ON = f"put {BEST} in its place or start without --resume"


def _progress(path: Path, text: str | None) -> Progress:
    from pydantic import TypeAdapter, ValidationError

    if text is None:
        raise DataError(f"{path} is not a checkpoint of this program: its metadata have no {ENTRY!r}")
    try:
        version = json.loads(text)["version"]
        if version > FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}")
        return TypeAdapter(Progress).validate_json(text)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: its metadata are not those of a checkpoint; {_WAY_ON}") from error


def check_same_run(path: Path, progress: Progress, network: str, data: str, options: Mapping[str, Any]) -> None:
    """A checkpoint must be of the run that resumes from it.

    Raises:
        UsageError: it is of another network, other data or other options, which are named.
    """
    for what, before, now in (("network", progress.network, network), ("data set", progress.data, data)):
        if before != now:
            raise UsageError(f"{path} is of another {what}: start without --resume, or in another --out folder")
    differing = [
        f"{_flag(name)} (was {progress.options.get(name)}, now {value})"
        for name, value in options.items()
        if progress.options.get(name) != value
    ]
    if differing:
        raise UsageError(
            f"{path} was made with other options: {', '.join(differing)}; use those, or another --out folder"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flush_folder(folder: Path) -> None:
    """Make a rename last."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
