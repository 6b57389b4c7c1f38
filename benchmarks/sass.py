"""Instructions in the inner loops of compiled CUDA kernels, counted by NVIDIA's disassembler.

It is ``nvdisasm``, of a CUDA toolkit or of the wheel ``nvidia-cuda-nvdisasm``.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

PRODUCTS = ("HMMA", "FFMA")  # of tensor cores; else of threads
_LABEL = re.compile(r"\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*)")
_TO = re.compile(r"`\((\.L_\w+)\)")


def find_nvdisasm() -> str | None:
    """The disassembler's path; None where there is none."""
    wheels = importlib.util.find_spec("nvidia")
    places = [] if wheels is None else list(wheels.submodule_search_locations or ())
    inside = [str(path) for place in places for path in Path(place).glob("cu*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or next(iter(inside), None)


def products_of(code: bytes, kernel: str, nvdisasm: str) -> tuple[int, int] | None:
    """Products, and instructions in all, of the loop that holds most products for its length; None: of no loop.

    Args:
        code: machine code of one architecture.
        kernel: its name.
        nvdisasm: the disassembler's path.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True).stdout
    loops = _loops(text.partition(f".text.{kernel}:")[2].partition(".text.")[0])
    name = next((name for name in PRODUCTS if any(loop[name] for loop in loops)), None)
    if name is None:
        return None
    best = max(loops, key=lambda loop: loop[name] / loop.total())
    return best[name], best.total()


def _loops(text: str) -> list[Counter[str]]:
    """Instructions from the target of each branch backwards to the branch, by name."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif found := _INSTRUCTION.match(line):
            names.append(found[1])
            to = _TO.search(found[2]) if found[1] == "BRA" else None
            start = None if to is None else labels.get(to[1])
            if start is not None and start < len(names) - 1:
                loops.append(Counter(names[start:]))
    return loops
