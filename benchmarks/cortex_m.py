"""Instructions of a network in bare C on a Cortex-M, layer by layer, and the phases of those that reuse.

    python -m benchmarks.cortex_m FOLDER [OTHER] --input input.npy [--core cortex-m4|cortex-m7] [--json FILE]

FOLDER is what `adr-compile --emit c` wrote; with OTHER (the same network dense, say) both are shown side by side. The
network runs once under qemu-system-arm with one instruction to a nanosecond of its clock (`-icount shift=0`), which is
read before and after each kernel: 40 instructions to a tick of the board's timer, and the same count every time. Phases
are counted in a run of their own, since looking at them takes some 40 instructions a call. A real core takes more than
a cycle for some instructions and less for others: counts compare kernels, they are no times.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from adr_tvm.bare_c.emit import C_TYPES
from adr_tvm.bare_c.footprint import compiler_flags
from adr_tvm.targets import TARGETS
from benchmarks.bare_c import INSTRUCTIONS_PER_TICK, QEMU

BOARDS = {"cortex-m4": ("mps2-an386", "0x21000000"), "cortex-m7": ("mps2-an500", "0x60000000")}
PHASES = {
    "cluster": ("adr_cluster_i8",),
    "multiply": ("adr_products_i8", "adr_small_products_i8"),
    "gather-add": ("adr_gather_i8", "adr_gather_small_i8"),
}


@dataclass(frozen=True)
class LayerCount:
    """Instructions of one layer.

    Attributes:
        layer, kernel: its name, and the kernel that ran it.
        instructions: in all.
        phases: of a layer that reuses, by phase; what is left over is in none.
        clusters: that it found; None where it does not reuse.
    """

    layer: str
    kernel: str
    instructions: int
    phases: dict[str, int]
    clusters: int | None


def count(folder: Path, sample: np.ndarray, core: str) -> list[LayerCount]:
    """The layers of a network in order, run on one sample (all inputs, one after the other)."""
    steps = _steps(folder)
    kernels = sorted({kernel for _, kernel in steps})
    log = _run(folder, sample, core, kernels)
    calls = [(kernels[f], INSTRUCTIONS_PER_TICK * ticks) for f, ticks in log["call"]]
    assert [kernel for kernel, _ in calls] == [kernel for _, kernel in steps]
    reusing, clusters = [k for k in kernels if "_reuse_" in k], [c for c, _ in log["counts"]]
    phases = _phases(folder, sample, core, reusing) if reusing else {}
    found = []
    for (layer, kernel), (_, instructions) in zip(steps, calls, strict=True):
        reuses = kernel in reusing
        own = phases.get(kernel, {}) if reuses else {}
        found.append(LayerCount(layer, kernel, instructions, own, clusters.pop(0) if reuses else None))
    return found


def _phases(folder: Path, sample: np.ndarray, core: str, reusing: list[str]) -> dict[str, dict[str, int]]:
    """By kernel that reuses: instructions by phase, of all layers that it runs."""
    inner = [name for names in PHASES.values() for name in names]
    functions = [*reusing, *inner]
    log = _run(folder, sample, core, functions)
    found: dict[str, dict[str, int]] = {}
    for function, caller, ticks, _ in log["total"]:
        name = functions[function]
        if name in inner and caller < len(reusing):
            phase = next(phase for phase, names in PHASES.items() if name in names)
            of = found.setdefault(functions[caller], {})
            of[phase] = of.get(phase, 0) + INSTRUCTIONS_PER_TICK * ticks
    return found


def _steps(folder: Path) -> list[tuple[str, str]]:
    """(layer, kernel) in the order they run, from the driver."""
    text = (folder / "model.c").read_text()
    return re.findall(r"/\* \w+ (.*?): .*? \*/\n  (adr_\w+)\(", text)


def _run(folder: Path, sample: np.ndarray, core: str, functions: list[str]) -> dict[str, list[tuple[int, ...]]]:
    machine, slow = BOARDS[core]
    manifest = json.loads((folder / "model.json").read_text())
    tensors = [*manifest["inputs"], *manifest["outputs"]]
    buffers = [f"{C_TYPES[t['dtype']]} {t['name']}[MODEL_{t['name'].upper()}_ELEMENTS]" for t in tensors]
    reads = [f"(board_read(file, {t['name']}, (int32_t)sizeof {t['name']}) != (int32_t)sizeof {t['name']})"
             for t in manifest["inputs"]]  # fmt: skip
    wraps = " ".join(f"WRAP({i}, {name})" for i, name in enumerate(functions))
    header = [
        f"#define COUNTED {len(functions)}",
        f"#define WRAPS {wraps}",
        f"#define BUFFERS {'; static '.join(buffers)}",
        f"#define READ ({' + '.join(reads)})",
        f"#define ARGUMENTS {', '.join(t['name'] for t in tensors)}",
    ]
    with tempfile.TemporaryDirectory() as made:
        work, example = Path(made), folder / "example"
        (work / "network.h").write_text("\n".join(header) + "\n")
        sample.tofile(work / "input.bin")
        here = Path(__file__).with_name("cortex_m_count.c")
        command = ["arm-none-eabi-gcc", *compiler_flags(TARGETS[core]), "-DBOARD_TICKS_PER_SECOND=25000000"]
        command += ["-ffunction-sections", "-fdata-sections", f"-I{folder}", f"-I{example}", f"-I{work}"]
        command += [str(here), str(example / "mps2.c"), *map(str, sorted(folder.glob("*.c")))]
        command += [f"-Wl,--wrap={name}" for name in functions]
        command += ["-nostartfiles", "--specs=nosys.specs", "-Wl,--gc-sections", f"-Wl,--defsym=slow_memory={slow}"]
        command += ["-T", str(example / "mps2.ld"), "-lm", "-o", str(work / "count.elf")]
        subprocess.run(command, check=True)
        ran = [*QEMU.split(), "-machine", machine, "-kernel", "count.elf"]
        done = subprocess.run(ran, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the emulated program failed: {done.stdout}{done.stderr}")
    log: dict[str, list[tuple[int, ...]]] = {"call": [], "total": [], "counts": []}
    for line in (done.stdout + done.stderr).splitlines():
        name, *numbers = line.split()
        if name in log:
            log[name].append(tuple(map(int, numbers)))
    return log


def table(first: list[LayerCount], other: list[LayerCount] | None) -> str:
    """Markdown, a row for each layer."""
    rows = ["| layer | kernel | instructions | clusters | phases |", "|---|---|---|---|---|"]
    if other is not None:
        rows = ["| layer | kernel | instructions | other | ratio | clusters | phases |", f"{'|---' * 7}|"]
    others = {} if other is None else {each.layer: each.instructions for each in other}
    total = LayerCount("all", "", sum(each.instructions for each in first), {}, None)
    others["all"] = sum(others.values())
    for each in [*first, total]:
        rest = each.instructions - sum(each.phases.values())
        phases = ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in each.phases.items())
        phases += f", rest {rest / 1e6:.2f} M" if phases else ""
        cells = [each.layer, each.kernel.removeprefix("adr_"), f"{each.instructions / 1e6:.2f} M"]
        if other is not None:
            beside = others.get(each.layer)
            cells += ["", ""] if beside is None else [f"{beside / 1e6:.2f} M", f"{beside / each.instructions:.2f}x"]
        cells += ["" if each.clusters is None else str(each.clusters), phases]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of adr-compile --emit c")
    parser.add_argument("other", type=Path, nargs="?", help="another, shown beside it")
    parser.add_argument("--input", type=Path, required=True, help=".npy with one sample as the network takes it")
    parser.add_argument("--core", choices=list(BOARDS), default="cortex-m4")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    arguments = parser.parse_args()
    sample = np.ascontiguousarray(np.load(arguments.input, allow_pickle=False))
    found = count(arguments.folder, sample, arguments.core)
    other = None if arguments.other is None else count(arguments.other, sample, arguments.core)
    for folder in (arguments.folder, arguments.other):
        if folder is not None:
            sizes = json.loads((folder / "model.json").read_text())["bytes"]
            print(f"{folder.name}: arena {sizes['arena']}, constants {sizes['constants']}, code {sizes['code']} bytes")
    print(table(found, other))
    if arguments.json is not None:
        sides = [[asdict(each) for each in side or []] for side in (found, other)]
        arguments.json.write_text(json.dumps(sides, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
