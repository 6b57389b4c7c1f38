"""``metrics.jsonl``: what happened in a run, a JSON object a line, in order; ``event`` says what kind.

| event | fields |
|---|---|
| ``start`` | network, data, options, layers: {name: [{reuse, cost}]}, steps, steps_per_epoch, images; of fine-tuning |
|  | before: {reuse, dense}: test accuracies before the first step |
| ``stage`` | step (before it), level, layers: {name: reuse or null}, measured: {name: {position: [dense s, reuse s]}} |
| ``step`` | step and epoch (from 1), loss, accuracy, lr, images_per_second, seconds, layers: {name: {L, H, r_c}} |
| ``epoch`` | step, epoch, loss, accuracy, test_loss, test_accuracy, images_per_second, seconds: {phase: s so far}; |
|  | of fine-tuning dense_accuracy: without reuse, where test_accuracy is with it |

With a scaled loss a step has ``scale`` and ``skipped``: whether an overflow under it made the step change nothing; its
loss is null then if it was not finite.

Layers whose clusters persist also have ``streamed``: the share of clusters whose centroid is that of an earlier batch.
Lines are whole: a run that goes on from a checkpoint cuts the file where the checkpoint was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from adr_tvm.errors import DataError, UsageError

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to a metrics file.

    Args:
        path: the file.
        keep: bytes of an earlier run to keep; the rest is cut off.

    Raises:
        UsageError: the file cannot be written.
        DataError: it is shorter than ``keep``: not the one the checkpoint was made with.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            if size < keep:
                raise DataError(f"{path} has {size} bytes, the checkpoint was made at {keep}: it is not of this run")
            self._file = path.open("ab")
            self._file.truncate(keep)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, **fields: Any) -> None:
        """Append a line.

        Raises:
            UsageError: the file cannot be written.
            ValueError: a field holds NaN or Inf.
        """
        line = json.dumps({"event": event, **fields}, allow_nan=False, separators=(",", ":"))
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write {self._path}: {error.strerror or error}") from error

    def flush(self) -> int:
        """Write through to the disk; returns the length of the file."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UsageError(f"cannot write {self._path}: {error.strerror or error}") from error
        return os.fstat(self._file.fileno()).st_size


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a metrics file, in order; a last line that was not finished is left out.

    Raises:
        DataError: the file cannot be read, or is not one of this program.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    return
                try:
                    event = json.loads(line)
                    event["event"]
                except (ValueError, TypeError, KeyError):
                    raise DataError(f"{path} line {number} is not an event of a training run") from None
                yield event
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
