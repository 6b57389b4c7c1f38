"""Networks in bare C on Arm's MPS2 board, emulated: bytes, instructions, and how far results are from ONNX Runtime's.

    python -m benchmarks.bare_c MODEL.onnx ... [--plan DIR] [--inputs X.npy]

QEMU counts instructions, not cycles: an instruction is a nanosecond of its clock (``-icount shift=0``). Needs the
packages gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from adr_tvm.bare_c.bundle import c_network, write_c_bundle
from adr_tvm.frontend.dense_check import random_inputs, relative_error
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.plan import ReusePlan

CORES = ("cortex-m4", "cortex-m7")
INSTRUCTIONS_PER_TICK = 40  # the board's timer runs at 25 MHz of the emulator's clock
QEMU = (
    "qemu-system-arm -display none -monitor none -serial null -semihosting-config enable=on,target=native "
    "-icount shift=0"
)
HEADINGS = "| network | core | reuse layers | RAM KiB | flash KiB | 10^6 instructions | clusters | error |"


def run_on_board(folder: Path, samples: np.ndarray, core: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(instructions of each sample, all outputs, all counts) of what ``write_c`` wrote."""
    example = folder / "example"
    np.ascontiguousarray(samples, np.float32).tofile(example / "input.bin")
    command = ["make", "-s", f"run-{core}", f"QEMU={QEMU}"]
    done = subprocess.run(command, cwd=example, check=True, capture_output=True, text=True)
    ticks = [int(each) for each in re.findall(r": (\d+) ticks", done.stdout + done.stderr)]
    counts = example / "counts.bin"
    counted = np.fromfile(counts, np.int32) if counts.exists() else np.zeros(0, np.int32)
    return [each * INSTRUCTIONS_PER_TICK for each in ticks], np.fromfile(example / "output.bin", np.float32), counted


def rows(model: Path, plan: Path | None, samples: np.ndarray | None) -> list[str]:
    """A row for each core.

    Args:
        model: ONNX file of one input and one output.
        plan: to apply; None: dense.
        samples: [n, ...]; None: random numbers, one sample.
    """
    loaded = LoadedNetwork(model, CompileOptions(plan=plan))
    checked, (given,) = loaded.checked, loaded.checked.inputs
    applied = loaded.given_plan() or ReusePlan(checked.sha256, "none", 0, "none", None, {})
    network = c_network(loaded.mod, checked, applied)
    if samples is None:
        samples = random_inputs(checked.inputs, 1, 0)[given.name]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(None, {given.name: x[None]})[0] for x in samples])
    found = []
    for core in CORES:
        with tempfile.TemporaryDirectory() as name:
            footprint = write_c_bundle(Path(name), network, applied, CompileOptions(target=core, emit="c"))
            instructions, y, counts = run_on_board(Path(name), samples, core)
        clusters = counts.reshape(len(samples), -1, 2)[..., 0].sum(axis=1).mean() if counts.size else 0
        cells = [
            model.stem,
            core,
            str(len(network.graph.reuse_layers)),
            f"{footprint.ram / 1024:.0f}",
            f"{footprint.flash / 1024:.0f}",
            f"{np.mean(instructions) / 1e6:.2f}",
            f"{clusters:.0f}",
            f"{relative_error(y.reshape(expected.shape), expected):.1e}",
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_c", description=__doc__.splitlines()[0])
    parser.add_argument("models", metavar="MODEL.onnx", type=Path, nargs="+")
    parser.add_argument("--plan", type=Path, metavar="DIR", help="a plan to apply; without it all layers are dense")
    parser.add_argument("--inputs", type=Path, metavar="X.npy", help="samples [n, ...] (default: random numbers)")
    options = parser.parse_args()
    samples = None if options.inputs is None else np.load(options.inputs, allow_pickle=False)
    print(HEADINGS)
    print("|---|---|---|---|---|---|---|---|")
    for model in options.models:
        for row in rows(model, options.plan, samples):
            print(row, flush=True)


if __name__ == "__main__":
    main()
