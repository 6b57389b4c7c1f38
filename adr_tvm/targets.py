"""The targets a network can be compiled for, by the name the user gives; one entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adr_tvm.errors import UsageError

if TYPE_CHECKING:
    import tvm


def _this_cpu() -> tvm.target.Target:
    from adr_tvm._tvm import cpu_target
    from adr_tvm.deploy.threads import set_threads

    return cpu_target(threads=set_threads())


@dataclass(frozen=True)
class TargetEntry:
    """A target.

    Attributes:
        name: as on the command line and in plans.
        description: for the help.
        make: builds TVM's target; imports TVM.
    """

    name: str
    description: str
    make: Callable[[], tvm.target.Target]


TARGETS = {entry.name: entry for entry in (TargetEntry("cpu", "the processor of this machine", _this_cpu),)}


def find_target(name: str) -> TargetEntry:
    """The target of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"--target {name!r} is not known; there is {', '.join(TARGETS)}")
    return TARGETS[name]
