"""The int8 kernels of bare C as a shared library of this machine, called through ctypes, and on emulated 64-bit Arm."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from adr_tvm.bare_c.int8_packing import ReuseMemory
from adr_tvm.geometry import ConvGeometry

CANARY = 64
KERNELS = Path(str(resources.files("adr_tvm.bare_c").joinpath("kernels")))
WARNINGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-Wpedantic"]
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
ARM_CORES = {"neon": ("cortex-a72", "cortex-a72"), "dotprod": ("cortex-a76", "max")}  # of compiler and emulator


def integers(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int32) for name in names.split()]


class Window(ctypes.Structure):
    _fields_ = [
        *integers("height width channels out_height out_width out_channels kernel_height kernel_width"),
        *integers("stride_y stride_x dilation_y dilation_x pad_top pad_left"),
    ]


class Layer(ctypes.Structure):
    _fields_ = [("window", Window), *integers("low high rescale_words")]


class Average(ctypes.Structure):
    _fields_ = [("window", Window), *integers("multiplier shift low high")]


class Add(ctypes.Structure):
    _fields_ = integers("size multiplier_a multiplier_b shift low high")


class Scale(ctypes.Structure):
    _fields_ = [("size", ctypes.c_int32), ("factor", ctypes.c_float)]


class Logits(ctypes.Structure):
    _fields_ = integers("channels out_channels")


class Reuse(ctypes.Structure):
    _fields_ = [
        ("layer", Layer),
        *integers("segments length bits capacity slots max_clusters centroids table_shift table_words"),
    ]


def window(g: ConvGeometry) -> Window:
    sizes = (g.H, g.W, g.C, g.OH, g.OW, g.M, g.KH, g.KW, *g.strides, *g.dilation, g.padding[0], g.padding[1])
    return Window(*sizes)


class Pointer:
    """An array as an argument, or NULL."""

    def __init__(self, array: np.ndarray | None) -> None:
        self.array = array
        self._as_parameter_ = ctypes.c_void_p(None if array is None else array.ctypes.data)


class Emulated:
    """The kernels that ``int8_emulated.c`` runs on an emulated core of 64-bit Arm, called as through ctypes.

    Args:
        core: GCC's name.
        cpu: the emulator's.
    """

    KERNELS = ("conv2d", "depthwise", "dense", "logits", "reuse_pixel", "reuse_segment", "reuse_row")

    def __init__(self, core: str, cpu: str) -> None:
        program, here = Path(mkdtemp(prefix="int8-kernels-")) / "kernels", Path(__file__)
        sources = [here.with_name("int8_emulated.c"), *sorted(KERNELS.glob("*_i8.c"))]
        command = [ARM_COMPILER, *WARNINGS, f"-mcpu={core}", f"-I{KERNELS}", "-static", "-o", program, *sources]
        subprocess.run(list(map(str, command)), check=True)
        emulator = [EMULATOR, "-cpu", cpu, str(program)]
        self.process = subprocess.Popen(emulator, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return partial(self._call, self.KERNELS.index(name.removeprefix("adr_").removesuffix("_i8")))

    def _call(self, number: int, *arguments: Any) -> None:
        given, taken = self.process.stdin, self.process.stdout
        assert given is not None and taken is not None
        pieces = [each.array if isinstance(each, Pointer) else bytes(each._obj) for each in arguments]
        given.write(np.array([number, len(pieces)], np.int32).tobytes())
        for piece in pieces:
            content = b"" if piece is None else piece if isinstance(piece, bytes) else piece.tobytes()
            given.write(np.int32(-1 if piece is None else len(content)).tobytes() + content)
        given.flush()
        for piece in pieces:
            if isinstance(piece, bytes):
                assert taken.read(len(piece)) == piece
            elif piece is not None:
                np.copyto(piece, np.frombuffer(taken.read(piece.nbytes), piece.dtype).reshape(piece.shape))


@cache
def library(form: str = "portable") -> Any:
    """The kernels in one of their forms.

    Args:
        form: ``portable``; ``simd``: for Arm's DSP extension, with its intrinsics in plain C; ``neon``, ``dotprod``:
            for 64-bit Arm, without and with dot products, emulated.
    """
    if form in ARM_CORES:
        if shutil.which(ARM_COMPILER) is None or shutil.which(EMULATOR) is None:
            pytest.skip(f"needs {ARM_COMPILER} and {EMULATOR} (apt-get install g++-aarch64-linux-gnu qemu-user)")
        return Emulated(*ARM_CORES[form])
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: apt install gcc")
    made = Path(mkdtemp(prefix="int8-kernels-")) / "kernels.so"
    options = [*WARNINGS, "-fPIC", "-shared"]
    if form == "simd":
        options += [f"-I{Path(__file__).parent / 'acle_in_c'}", "-D__ARM_FEATURE_SIMD32"]
    subprocess.run([compiler, *options, *sorted(map(str, KERNELS.glob("*_i8.c"))), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


class Output:
    """Memory for results that notices what is written past its end."""

    def __init__(self, size: int, dtype: type) -> None:
        self.memory = np.full(size + CANARY, 85, dtype)
        self.size = size

    @property
    def values(self) -> np.ndarray:
        assert (self.memory[self.size :] == 85).all(), "written past the end"
        return self.memory[: self.size]


def reuse_fields(memory: ReuseMemory) -> tuple[int, ...]:
    return memory.capacity, memory.slots, memory.max_clusters, memory.centroids, memory.table_shift, memory.table_words
