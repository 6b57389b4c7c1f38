"""Tuned schedules in a file: JSON lines, only ever appended to; of several lines for one kernel the last counts.

A line is written at once and ends the file, so that several processes may share a database and an interrupt damages at
most the last line. What cannot be used (damaged, of another program version's format, of another processor) is left in
the file, warned about, and passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tvm.target import Target

from adr_tvm._tvm import is_cuda
from adr_tvm.deploy.processor import processor_name
from adr_tvm.errors import UsageError
from adr_tvm.progress import get_log
from adr_tvm.schedules.tuned import KernelShape
from adr_tvm.tuning.families import FAMILIES
from adr_tvm.tuning.record import Machine, TuningRecord

MAX_BYTES = 64 << 20
MAX_WARNINGS = 5


def target_machine(target: Target, threads: int, cpu: str | None = None) -> Machine:
    """A machine, as code for ``target`` on some threads finds it.

    Args:
        cpu: its maker's name; None: this machine.
    """
    return Machine(processor_name() if cpu is None else cpu, str(target.attrs.get("mcpu", "")), threads)


def machines_in(path: Path) -> list[Machine]:
    """The machines that a database has records of; none if it does not exist.

    Raises:
        UsageError: the file cannot be read, or is not a database.
    """
    records = (record for _, record in _records_of(path) if isinstance(record, TuningRecord)) if path.exists() else ()
    return list(dict.fromkeys(record.machine for record in records))


class TuningDatabase:
    """The records of a file that are for one machine; a ``ScheduleSource``.

    Args:
        path: the file; None keeps records in memory.
        machine: records of other machines are ignored.

    Raises:
        UsageError: the file cannot be read, or is not a database.
    """

    def __init__(self, path: Path | None, machine: Machine):
        self.path, self.machine = path, machine
        self._records: dict[KernelShape, TuningRecord] = {}
        self._schedules: dict[KernelShape, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def __len__(self) -> int:
        return len(self._records)

    def find(self, kernel: KernelShape) -> TuningRecord | None:
        """What is known of a kernel."""
        return self._records.get(kernel)

    def schedule(self, kernel: KernelShape, target: Target) -> Any | None:
        """The tuned schedule of a kernel; None without one, and for a target of another machine."""
        if is_cuda(target) != self.machine.is_gpu:
            return None  # code for the processor that is compiled meanwhile, or the other way round
        if not self.machine.is_gpu and str(target.attrs.get("mcpu", "")) != self.machine.mcpu:
            return None
        if kernel not in self._schedules:
            self._schedules[kernel] = self._valid_schedule(kernel, target)
        return self._schedules[kernel]

    def add(self, record: TuningRecord) -> None:
        """Keep a record, in the file too.

        Raises:
            UsageError: the file cannot be written.
        """
        if self.path is not None:
            self._append(self.path, json.dumps(asdict(record), allow_nan=False))
        self._keep(record)

    def check_writable(self) -> None:
        """Make sure, before any work, that records can be kept.

        Raises:
            UsageError: the file cannot be written.
        """
        if self.path is not None:
            self._append(self.path, "")

    def _keep(self, record: TuningRecord) -> None:
        self._records[record.kernel] = record
        self._schedules.pop(record.kernel, None)

    def _append(self, path: Path, line: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                if file.tell() and line:
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line  # what an interrupt cut off ends here
                if line:
                    os.write(file.fileno(), f"{line}\n".encode())
        except OSError as error:
            raise UsageError(f"cannot write the tuning database {path}: {error.strerror or error}") from error

    def _read(self, path: Path) -> None:
        damaged, elsewhere, count = 0, 0, 0
        for number, record in _records_of(path):
            count = number
            if not isinstance(record, TuningRecord):
                damaged += 1
                if damaged <= MAX_WARNINGS:
                    get_log().warning("%s, line %d is passed over: %s", path, number, record)
            elif record.machine.cpu != self.machine.cpu or record.machine.mcpu != self.machine.mcpu:
                elsewhere += 1
            elif record.machine.threads == self.machine.threads:
                self._keep(record)
        if damaged > MAX_WARNINGS:
            get_log().warning("%s: %d more lines are passed over", path, damaged - MAX_WARNINGS)
        if elsewhere:
            get_log().warning(
                "%s: %d of %d records are of another processor than this %s and are ignored",
                path,
                elsewhere,
                count,
                self.machine.cpu,
            )

    def _valid_schedule(self, kernel: KernelShape, target: Target) -> Any | None:
        from pydantic import TypeAdapter, ValidationError

        record = self.find(kernel)
        if record is None or record.schedule is None:
            return None
        family = FAMILIES.get(kernel.kind)
        try:
            if family is None:
                raise ValueError("there is no such kind of kernel")
            schedule: Any = TypeAdapter(family.schedule_type).validate_json(json.dumps(record.schedule), strict=True)
            if not family(kernel, target, record.images).accepts(schedule):
                raise ValueError("it does not suit the kernel")
        except (ValidationError, ValueError) as error:
            get_log().warning(
                "%s: the schedule of a %s kernel cannot be used: %s", self.path, kernel.kind, _first_problem(error)
            )
            return None
        return schedule


def _records_of(path: Path) -> Iterator[tuple[int, TuningRecord | str]]:
    """Number of each line that is not empty, from 1 on, and its record, else what is wrong with it."""
    from pydantic import TypeAdapter, ValidationError

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB: not a tuning database")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the tuning database {path}: {error.strerror or error}") from error
    adapter = TypeAdapter(TuningRecord)
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, adapter.validate_json(line, strict=True)
            except (ValidationError, RecursionError) as error:
                yield number, _first_problem(error)


def _first_problem(error: Exception) -> str:
    """In one line."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error).partition("\n")[0]
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
