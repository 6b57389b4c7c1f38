"""Which database a compile run uses.

Only a file that the user names, or asks to be filled, decides about schedules: what a compile run makes must not depend
on what happens to lie in a cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from adr_tvm.errors import UsageError
from adr_tvm.planner.cost_file import cache_folder
from adr_tvm.tuning.database import TuningDatabase
from adr_tvm.tuning.record import Machine


def default_database(cpu: str) -> Path:
    """The file that ``--tune`` fills for a processor where the user names none.

    Raises:
        UsageError: the user has no cache folder.
    """
    name = re.sub("[^a-z0-9]+", "-", cpu.lower()).strip("-") or "cpu"
    return cache_folder() / f"tuning-{name[:80]}.jsonl"


def open_database(given: str | Path | None, trials: int | None, machine: Machine) -> TuningDatabase | None:
    """The database of a run; None: every kernel gets its default schedule.

    Args:
        given: a file that the user named.
        trials: of each kernel; None: nothing is tuned.
        machine: that the kernels will run on.

    Raises:
        UsageError: the file does not exist and nothing is tuned, or it cannot be read, or not be written.
    """
    if given is None and trials is None:
        return None
    path = default_database(machine.cpu) if given is None else Path(given)
    if trials is None and not path.exists():
        raise UsageError(f"--tuning-db {path} does not exist; with --tune N it is made")
    database = TuningDatabase(path, machine)
    if trials is not None:
        database.check_writable()
    return database
