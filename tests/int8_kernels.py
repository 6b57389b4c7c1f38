"""The int8 kernels of bare C as a shared library of this machine, called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from adr_tvm.bare_c.int8_packing import ReuseMemory
from adr_tvm.geometry import ConvGeometry

CANARY = 64


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


@cache
def library(simd: bool = False) -> ctypes.CDLL:
    """The kernels; ``simd``: their form for Arm's DSP extension, with its intrinsics in plain C."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: apt install gcc")
    kernels = Path(str(resources.files("adr_tvm.bare_c").joinpath("kernels")))
    made = Path(mkdtemp(prefix="int8-kernels-")) / "kernels.so"
    options = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-fPIC", "-shared"]
    if simd:
        options += [f"-I{Path(__file__).parent / 'acle_in_c'}", "-D__ARM_FEATURE_SIMD32"]
    subprocess.run([compiler, *options, *sorted(map(str, kernels.glob("*_i8.c"))), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


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
