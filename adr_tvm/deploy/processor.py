"""This machine's processor: its name, and whether it has what a library was compiled for."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_EXTENSIONS = re.compile(r"avx2?|fma|f16c|avx512(f|bw|dq|vl|cd|vnni|bf16)|asimd(dp|hp)?|sve2?|i8mm")
_LINUX_NAMES = {"neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp"}  # of what LLVM names otherwise


def vector_extensions(features: Iterable[str]) -> list[str]:
    """The x86 and Arm extensions among a processor's features that the code generator uses, by Linux's names.

    LLVM and Linux name x86's alike, separators aside (``avx512vnni``, ``avx512_vnni``).
    """
    plain = {re.sub("[^a-z0-9]", "", feature.lower()) for feature in features}
    plain = {_LINUX_NAMES.get(name, name) for name in plain}
    return sorted(name for name in plain if _EXTENSIONS.fullmatch(name))


def missing_extensions(needed: Iterable[str]) -> list[str]:
    """Which of the extensions this processor lacks; none where the system does not tell."""
    cpuinfo = _cpuinfo()
    flags = cpuinfo.get("flags", cpuinfo.get("Features"))  # on x86, on Arm
    if flags is None:
        return []
    return lacking(needed, flags.split())


def lacking(needed: Iterable[str], features: Iterable[str]) -> list[str]:
    """Which of the extensions are not among a processor's features, by Linux's or LLVM's names."""
    have = vector_extensions(features)
    return [name for name in needed if name not in have]


def processor_name() -> str:
    """The maker's name for this processor."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def _cpuinfo() -> dict[str, str]:
    """Properties of the first processor in /proc/cpuinfo."""
    try:
        return cpu_properties(_CPUINFO.read_text())
    except OSError:
        return {}


def cpu_properties(text: str) -> dict[str, str]:
    """Properties of the first processor in a /proc/cpuinfo."""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
