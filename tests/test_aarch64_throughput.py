"""Inner loops of the dense kernels on 64-bit Arm, by the static throughput analysis of llvm-mca: no spills, 70 % of the
peak. In fp32 on a Cortex-A72 that is one multiply-add of 128 bits in a cycle; of bare C's int8 products a long
multiplication in a cycle, on a Cortex-A76 two dot products, or two multiply-adds of
eight fp16."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources

import pytest
import tvm
from tvm.support import cc

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.dense_conv2d import dense_conv2d
from adr_tvm.schedules.tuned import conv_schedule, half_conv_schedule
from adr_tvm.targets import find_target
from tests import aarch64

MCA, OBJDUMP, C_COMPILER = "llvm-mca", "aarch64-linux-gnu-objdump", "aarch64-linux-gnu-gcc"
ITERATIONS = 200
GEOMETRIES = {
    "3x3": ConvGeometry(56, 56, 64, 3, 3, 64, padding=(1, 1, 1, 1)),
    "1x1": ConvGeometry(28, 28, 128, 1, 1, 256),
    "few rows": ConvGeometry(7, 7, 256, 3, 3, 256, padding=(1, 1, 1, 1)),
    "dense": ConvGeometry(1, 1, 256, 1, 1, 512),
}
_BRANCH = re.compile(r"(?:b\.\w+|cbn?z|tbn?z|b)\s.*?([0-9a-f]+) <")

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, (MCA, OBJDUMP, aarch64.COMPILER))), reason="needs llvm and g++-aarch64-linux-gnu"
)


def loops(listing: str) -> list[list[str]]:
    """Instructions of each loop of a disassembly, without its branch."""
    lines = [line.split("\t") for line in listing.splitlines() if re.match(r"\s*[0-9a-f]+:\t", line)]
    code = [(int(line[0].strip(" :"), 16), " ".join(line[2:])) for line in lines if len(line) > 2]
    places = {address: i for i, (address, _) in enumerate(code)}
    found = []
    for i, (address, text) in enumerate(code):
        to = _BRANCH.match(text)
        start = places.get(int(to.group(1), 16)) if to else None
        if start is not None and code[start][0] < address:
            found.append([text.partition("//")[0].strip() for _, text in code[start:i]])
    return found


def inner_loop(geometry: ConvGeometry, folder) -> list[str]:
    """The loop that multiplies."""
    target = find_target("cortex-a72").make(None)
    return compiled_loop(dense_conv2d(geometry, Activation.relu(), conv_schedule(target, geometry, 1)), target, folder)


def compiled_loop(kernel: tvm.tirx.PrimFunc, target: tvm.target.Target, folder) -> list[str]:
    """The busiest loop of a kernel."""
    library = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target)
    path = folder / "kernel.so"
    library.export_library(str(path), fcompile=cc.cross_compiler(aarch64.COMPILER))
    return busiest_loop(path, ("fmla",))


def busiest_loop(path, multiplying: tuple[str, ...]) -> list[str]:
    """The innermost loop with most of some instructions."""
    listing = subprocess.run([OBJDUMP, "-d", str(path)], check=True, capture_output=True, text=True).stdout
    innermost = [loop for loop in loops(listing) if not any(_BRANCH.match(text) for text in loop)]
    return max(innermost, key=lambda loop: sum(text.startswith(multiplying) for text in loop))


def cycles_of(loop: list[str], core: str, attributes: str = "") -> float:
    """Cycles that an iteration takes."""
    command = [MCA, "-mtriple=aarch64", f"-mcpu={core}", f"-mattr={attributes}", f"-iterations={ITERATIONS}"]
    report = subprocess.run(command, input="\n".join(loop), check=True, capture_output=True, text=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", report).group(1)) / ITERATIONS


@needs_tools
@pytest.mark.parametrize("name", GEOMETRIES)
def test_dense(name, tmp_path):
    loop = inner_loop(GEOMETRIES[name], tmp_path)
    products = sum(text.startswith("fmla") for text in loop)
    assert not any("[sp" in text for text in loop), "accumulators are spilled"
    cycles = cycles_of(loop, "cortex-a72")
    print(f"{name}: {products} multiply-adds in {cycles:.1f} cycles, {products / cycles:.0%} of the peak")
    assert products >= 4 and products / cycles >= 0.7


@needs_tools
@pytest.mark.parametrize("name", ["3x3", "1x1", "few rows"])
def test_dense_in_fp16(name, tmp_path):
    target, geometry = find_target("cortex-a76").make(None), GEOMETRIES[name]
    schedule = half_conv_schedule(target, geometry, 1)
    loop = compiled_loop(dense_conv2d(geometry, Activation.relu(), schedule, dtype="float16"), target, tmp_path)
    products = sum(bool(re.match(r"fmla\s+v\d+\.8h", text)) for text in loop)
    assert not any("[sp" in text for text in loop), "accumulators are spilled"
    cycles = cycles_of(loop, "cortex-a76", "+fullfp16")
    print(f"{name} in fp16: {products} products in {cycles:.1f} cycles, {products / cycles / 2:.0%} of the peak")
    assert products >= 16 and products / cycles / 2 >= 0.7


@needs_tools
@pytest.mark.parametrize(
    "core, multiplying, in_a_cycle", [("cortex-a72", ("smull", "smlal"), 1), ("cortex-a76", ("sdot",), 2)]
)
def test_int8_products(core, multiplying, in_a_cycle, tmp_path):
    made = tmp_path / "products.o"
    source = resources.files("adr_tvm.bare_c").joinpath("kernels", "products_i8.c")
    subprocess.run([C_COMPILER, "-std=c99", "-O2", f"-mcpu={core}", "-c", str(source), "-o", str(made)], check=True)
    loop = busiest_loop(made, multiplying)
    assert not any("[sp" in text for text in loop), "sums are spilled"
    products = sum(text.startswith(multiplying) for text in loop)
    cycles = cycles_of(loop, core, "+dotprod" if "sdot" in multiplying else "")
    print(f"{core}: {products} products in {cycles:.1f} cycles, {products / cycles / in_a_cycle:.0%} of the peak")
    assert products >= 16 and products / cycles / in_a_cycle >= 0.7
