"""How many threads the kernels use: ``TVM_NUM_THREADS``, which TVM's runtime reads as it starts its workers.

Two of the runtime's defaults are replaced here. Its number is half the logical processors, which is wrong on
machines without SMT: here it is one thread for each physical core that this process may use. And it pins threads to
cores, counted from core 0 on, whatever the process's affinity says: a process with one thread ends up on core 0 as
a whole, together with every other such process (measured, also under ``taskset -c 1``). So pinning is off, unless
the user sets ``TVM_BIND_THREADS=1``.

Each thread that calls the runtime gets workers of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from adr_tvm.errors import UsageError

VARIABLE = "TVM_NUM_THREADS"
PINNING = "TVM_BIND_THREADS"
_TOPOLOGY = Path("/sys/devices/system/cpu")


def processors() -> set[int]:
    """The logical processors this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int] | None = None, topology: Path = _TOPOLOGY) -> int:
    """Physical cores among some logical processors; SMT siblings count once.

    Args:
        cpus: None: those this process may run on.
        topology: the folder with ``cpu<n>/topology``; where it says nothing, each processor is a core.
    """
    return max(1, len({_core_of(cpu, topology) for cpu in (processors() if cpus is None else cpus)}))


def _core_of(cpu: int, topology: Path) -> str:
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second: kernels before 5.3
        try:
            return (topology / f"cpu{cpu}" / "topology" / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


def check_threads(count: int) -> int:
    """A number of threads that this process can have; the runtime would silently use fewer than asked for.

    Raises:
        UsageError: it is not positive, or more than the logical processors.
    """
    available = len(processors())
    if not 1 <= count <= available:
        raise UsageError(
            f"{count} threads asked for; this process may use {available} processor{'' if available == 1 else 's'}"
        )
    return count


def set_threads(count: int | None = None) -> int:
    """Fix the number of threads; call it before the first kernel runs.

    Args:
        count: None: what the environment says in ``TVM_NUM_THREADS``, as far as there are processors; without
            that, all physical cores.

    Returns:
        The number in force.

    Raises:
        UsageError: the number makes no sense, or TVM's runtime already runs with another.
    """
    text = os.environ.get(VARIABLE)
    if count is not None:
        wanted = check_threads(count)
    else:
        wanted = physical_cores() if text is None else min(_positive(text), len(processors()))
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
    os.environ.setdefault(PINNING, "0")
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


def _positive(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise UsageError(f"{VARIABLE} is {text!r}, expected a whole number from 1 on")
    return count
