"""Which phase of a layer an address of a compiled library belongs to.

A kernel is one function of the library, with the tasks of its parallel loops behind it. Inside, blocks of instructions
tell phases apart: the products of a kernel are its blocks with multiply-adds of vectors.

| kernel | blocks with multiply-adds | other blocks |
|---|---|---|
| dense (`conv2d`, `grouped_conv2d`, `row_gemm`) | GEMM | im2col: packing, and storing results |
| `pixel_cluster`, `segment_cluster`, `row_cluster`, `any_repeats` | hash | cluster: numbering, means |
| `pixel_gemm_scatter`, `segment_gemm_scatter` | GEMM | scatter: gather-adds |
| `row_combine`, `row_max_pool` | cluster | cluster: ids that are carried to the next layer |
| `row_scatter`, `expand` | scatter | scatter |
| all others | other | other |
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from pathlib import Path

PHASES = ("im2col", "hash", "cluster", "GEMM", "scatter", "other", "runtime")
TOOLS = "aarch64-linux-gnu-"
_MULTIPLY_ADDS = re.compile(r"^\s*([0-9a-f]+):\s+(?:fml[as]|[su]dot)\s+v")
_SYMBOL = re.compile(r"^([0-9a-f]+) (?:[0-9a-f]+ )?[tT] (\S+)$")
_RULES = (
    (re.compile(r"adr_(grouped_)?conv2d|adr_row_gemm"), "GEMM", "im2col"),
    (re.compile(r"adr_\w+_cluster|adr_any_repeats"), "hash", "cluster"),
    (re.compile(r"adr_\w+_gemm_scatter"), "GEMM", "scatter"),
    (re.compile(r"adr_row_(combine|max_pool)"), "cluster", "cluster"),
    (re.compile(r"adr_row_scatter|adr_expand"), "scatter", "scatter"),
)


class LibraryMap:
    """Functions and multiply-adds of a library for 64-bit Arm, by address.

    Args:
        library: the shared library.
    """

    def __init__(self, library: Path) -> None:
        symbols: list[tuple[int, str]] = []
        for line in _lines("nm", "-n", "--defined-only", library):
            if match := _SYMBOL.match(line):
                symbols.append((int(match[1], 16), match[2]))
        self._starts = [address for address, _ in symbols]
        self._names = [name for _, name in symbols]
        found = (_MULTIPLY_ADDS.match(line) for line in _lines("objdump", "-d", "--no-show-raw-insn", library))
        self._multiply_adds = sorted(int(match[1], 16) for match in found if match)

    def function(self, address: int) -> str:
        """The kernel at an address, as the pipeline named it; empty for what surrounds kernels."""
        place = bisect_right(self._starts, address) - 1
        name = self._names[place] if place >= 0 else ""
        return name.removesuffix("_compute_") if name.endswith("_compute_") else ""

    def phase(self, address: int, instructions: int) -> str:
        """The phase of a block of instructions."""
        function = self.function(address)
        if not function:
            return "runtime"
        first = bisect_right(self._multiply_adds, address - 1)
        inside = self._multiply_adds[first : first + 1]
        multiplies = bool(inside) and inside[0] < address + 4 * instructions
        for pattern, products, rest in _RULES:
            if pattern.match(function):
                return products if multiplies else rest
        return "other" if function.startswith("adr_") or not function.endswith("_calls") else "runtime"


def _lines(tool: str, *arguments: object) -> list[str]:
    command = [TOOLS + tool, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
