"""Instructions of networks in bare C on a 64-bit Arm core, by function.

    python -m benchmarks.bare_c_arm64 FOLDER ... --input input.npy [--json FILE]

FOLDER is what `adr-compile --target ... --emit c` wrote for such a core. The network is compiled for it, runs twice
under emulation, and every instruction of the second run is counted (`benchmarks/emulation/block_counts.c`). Counts are
the same on every machine, and no times. Needs the packages g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import argparse
import bisect
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from adr_tvm.bare_c.emit import C_TYPES
from adr_tvm.bare_c.footprint import compiler_flags
from adr_tvm.deploy.toolchain import c_toolchain_of
from adr_tvm.targets import find_target
from benchmarks.emulation.count import EMULATOR, counting_plugin
from benchmarks.emulation.phases import TOOLS

MOST_NAMED = 6

PROGRAM = """\
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>
#include "model.h"
static unsigned char arena[MODEL_ARENA_BYTES] __attribute__((aligned(MODEL_ARENA_ALIGNMENT)));
static %(buffers)s;
int main(void) {
  FILE *file = fopen("input.bin", "rb");
  if (file == NULL || %(reads)s) return 1;
  for (int run = 0; run < 2; ++run) {
    if (run) syscall(0xADA, -1L);
    if (model_run(arena, sizeof arena, %(arguments)s, NULL) != MODEL_OK) return 2;
  }
  syscall(0xADA, -2L);
  return 0;
}
"""


def count(folder: Path, sample: np.ndarray) -> Counter[str]:
    """Instructions by function of one run on a sample (all inputs, one after the other)."""
    manifest = json.loads((folder / "model.json").read_text())
    entry, given = find_target(manifest["target"]), manifest["inputs"]
    tensors = [*given, *manifest["outputs"]]
    words = {
        "buffers": "; static ".join(
            f"{C_TYPES[t['dtype']]} {t['name']}[MODEL_{t['name'].upper()}_ELEMENTS]" for t in tensors
        ),
        "reads": " || ".join(f"fread({t['name']}, sizeof {t['name']}, 1, file) != 1" for t in given),
        "arguments": ", ".join(t["name"] for t in tensors),
    }
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        (work / "count.c").write_text(PROGRAM % words)
        sample.tofile(work / "input.bin")
        sources = [str(work / "count.c"), *map(str, sorted(folder.glob("*.c")))]
        command = [c_toolchain_of(entry).check(), *compiler_flags(entry), f"-I{folder}", *sources]
        subprocess.run([*command, "-static", "-lm", "-o", str(work / "count")], check=True)
        plugin = f"{counting_plugin(work)},out={work / 'blocks'}"
        subprocess.run([EMULATOR, "-cpu", "max", "-plugin", plugin, "./count"], cwd=work, check=True)
        listed = subprocess.run(
            [f"{TOOLS}nm", "-n", "count"], cwd=work, check=True, capture_output=True, text=True
        ).stdout
        blocks = (work / "blocks").read_text().splitlines()
    symbols = [(int(line.split()[0], 16), line.split()[2]) for line in listed.splitlines() if line.split()[1] in "tTwW"]
    found: Counter[str] = Counter()
    for line in blocks:
        _, address, instructions, times = line.split()
        found[symbols[bisect.bisect(symbols, (int(address, 16), "~")) - 1][1]] += int(instructions) * int(times)
    return found


def main() -> int:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="of adr-compile --emit c")
    parser.add_argument("--input", type=Path, required=True, help=".npy with one sample as the network takes it")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    arguments = parser.parse_args()
    sample = np.ascontiguousarray(np.load(arguments.input, allow_pickle=False))
    print("| network | million instructions | most in |\n|---|---|---|")
    counts = {folder.name: count(folder, sample) for folder in arguments.folders}
    for name, found in counts.items():
        most = ", ".join(f"{function} {n / 1e6:.2f}" for function, n in found.most_common(MOST_NAMED))
        print(f"| {name} | {found.total() / 1e6:.2f} | {most} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(counts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
