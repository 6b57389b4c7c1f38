"""How many threads the kernels use: ``TVM_NUM_THREADS``, which TVM's runtime reads as it starts its workers.

TVM's own default is half the logical processors, which is wrong on machines without SMT; here it is one
thread for each physical core that this process may use. Each thread that calls the runtime gets workers of
its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from adr_tvm.errors import UsageError

VARIABLE = "TVM_NUM_THREADS"
MAX_THREADS = 1024
_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores(cpus: Iterable[int] | None = None, topology: Path = _TOPOLOGY) -> int:
    """Physical cores among the processors this process may run on; SMT siblings count once.

    Args:
        cpus: logical processors; None: those of this process's affinity.
        topology: the folder with ``cpu<n>/topology``; where it says nothing, each processor is a core.
    """
    if cpus is None:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, len({_core_of(cpu, topology) for cpu in cpus}))


def _core_of(cpu: int, topology: Path) -> str:
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second: kernels before 5.3
        try:
            return (topology / f"cpu{cpu}" / "topology" / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


def set_threads(count: int | None = None) -> int:
    """Fix the number of threads; call it before the first kernel runs.

    Args:
        count: threads; None: what the environment says in ``TVM_NUM_THREADS``, else all physical cores.

    Returns:
        The number in force.

    Raises:
        UsageError: the number makes no sense, or TVM's runtime already runs with another.
    """
    text = os.environ.get(VARIABLE)
    if count is not None:
        wanted = _checked(count, "the number of threads")
    elif text is not None:
        wanted = _checked(text, VARIABLE)
    else:
        wanted = physical_cores()
    running = _running(wanted)
    if running != wanted and count is None and text is None:
        wanted = running  # nobody asked for a number: the one in force stays
    elif running != wanted:
        _restore(text)
        raise UsageError(
            f"{wanted} threads asked for, but TVM's runtime already runs with {running} in this process: "
            f"set the number before the first kernel runs, or start the process with {VARIABLE}={wanted}"
        )
    os.environ[VARIABLE] = str(wanted)
    return wanted


def _running(wanted: int) -> int:
    """The number of threads TVM's runtime has; if it has not started them yet, it does so with ``wanted``."""
    tvm = sys.modules.get("tvm")
    if tvm is None or not hasattr(tvm, "runtime"):
        return wanted
    os.environ[VARIABLE] = str(wanted)
    return int(tvm.runtime.num_threads())


def _restore(text: str | None) -> None:
    if text is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = text


def _checked(value: int | str, what: str) -> int:
    try:
        count = int(value)
    except ValueError:
        raise UsageError(f"{what} is {value!r}, expected a whole number from 1 on") from None
    if not 1 <= count <= MAX_THREADS:
        raise UsageError(f"{what} is {count}, expected 1 to {MAX_THREADS}")
    return count
