"""What this machine can do at best: fp32 multiply-adds, and bytes from each level of the memory.

    python -m benchmarks.machine [--threads N ...] [--json FILE]

The other benchmarks state their figures as shares of these (`benchmarks/ceilings.py` says how they are measured).
"""

from __future__ import annotations

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.command import Command, Settings
from benchmarks.processes import in_process


def run(settings: Settings) -> list[Ceilings]:
    """The ceilings for each number of threads."""
    return [in_process(measure_ceilings, threads, threads, settings.seconds) for threads in settings.threads]


def table(rows: list[Ceilings]) -> list[list[str]]:
    """A row for each number of threads and level of the memory."""
    return [
        [
            f"{level.name}{'' if level.bytes is None else f', {_size(level.bytes)}'}",
            str(row.threads),
            f"{row.gflops:.0f}",
            f"{level.read:.0f}",
            f"{level.triad:.0f}",
            f"{row.gflops / level.read:.1f}",
        ]
        for row in rows
        for level in row.levels
    ]


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


COMMAND = Command(
    name="machine",
    description=__doc__,
    headings=["memory", "threads", "GFLOP/s", "read GB/s", "triad GB/s", "FLOP/byte at the ridge"],
    run=run,
    table=table,
)

if __name__ == "__main__":
    COMMAND.main()
