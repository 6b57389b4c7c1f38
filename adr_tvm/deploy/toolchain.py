"""What links the code of a target: this machine's C++ compiler, or a cross compiler; what compiles bare C for it."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass

from adr_tvm.errors import MissingDependencyError
from adr_tvm.targets import AARCH64, BARE_METAL, X86_64, TargetEntry


@dataclass(frozen=True)
class Toolchain:
    """A compiler.

    Attributes:
        command: what to run; None: there is none.
        package: the Debian package that has it.
        needs: what a user is told to install.
    """

    command: str | None
    package: str
    needs: str

    def check(self) -> str:
        """The command.

        Raises:
            MissingDependencyError: there is none.
        """
        if self.command is None:
            raise MissingDependencyError(self.needs)
        return self.command


_COMPILERS = {AARCH64: f"{AARCH64}-g++", X86_64: f"{X86_64}-g++", BARE_METAL: f"{BARE_METAL}-gcc"}
_PACKAGES = {
    AARCH64: "g++-aarch64-linux-gnu",
    X86_64: "g++-x86-64-linux-gnu",
    BARE_METAL: "gcc-arm-none-eabi libnewlib-arm-none-eabi",
}
_MACHINES = {AARCH64: ("aarch64", "arm64"), X86_64: ("x86_64", "amd64")}


_C_COMPILERS = {AARCH64: f"{AARCH64}-gcc", BARE_METAL: f"{BARE_METAL}-gcc"}


def system_of(entry: TargetEntry) -> str:
    """GNU name of the system that a target runs."""
    return entry.triple or this_system()


def this_system() -> str:
    """GNU name of this machine's system."""
    machine = platform.machine().lower()
    return next((triple for triple, names in _MACHINES.items() if machine in names), f"{machine}-linux-gnu")


def toolchain_of(entry: TargetEntry) -> Toolchain:
    """The compiler that links a target's code."""
    triple = entry.triple
    if triple is None or triple == this_system():
        needs = "no C++ compiler to link with: install one (apt install g++) or name it in CXX"
        from tvm.support import cc

        return Toolchain(cc.get_cc(), "g++", needs)
    return _cross(entry, triple, _COMPILERS[triple], "compiled" if entry.bare_metal else "linked")


def c_toolchain_of(entry: TargetEntry) -> Toolchain:
    """The cross compiler that compiles bare C for a target that takes it."""
    assert entry.triple is not None
    return _cross(entry, entry.triple, _C_COMPILERS[entry.triple], "compiled")


def _cross(entry: TargetEntry, triple: str, command: str, verb: str) -> Toolchain:
    package = _PACKAGES[triple]
    needs = f"--target {entry.name} is {verb} by {command}, which is not installed: apt install {package}"
    return Toolchain(shutil.which(command), package, needs)
