"""Bare C on Arm's MPS2 board, emulated by QEMU: the program of ``example/`` with its own start and linker script."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
    "make": "make",
}


def missing() -> str | None:
    """What is not there to compile for the board and run; None if all is."""
    for tool, package in PACKAGES.items():
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    return None


def run(folder: Path, samples: Sequence[np.ndarray], target: str, *variables: str) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, one row a sample; counts [samples, layers, 2]) of ``make run``, ``run-cortex-m4`` or others.

    Args:
        folder: what ``adr-compile --emit c`` wrote.
        samples: all inputs of a sample in one array.
        variables: of the makefile, such as ``CORE=cortex-a76``.
    """
    example = folder / "example"
    (example / "input.bin").write_bytes(b"".join(np.ascontiguousarray(sample).tobytes() for sample in samples))
    for name in ("output.bin", "counts.bin"):
        (example / name).unlink(missing_ok=True)
    done = subprocess.run(["make", "-s", target, *variables], cwd=example, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("ticks") == len(samples)
    counts = np.fromfile(example / "counts.bin", np.int32) if (example / "counts.bin").exists() else np.zeros(0, int)
    outputs = np.fromfile(example / "output.bin", np.float32)
    return outputs.reshape(len(samples), -1), counts.reshape(len(samples), -1, 2)
