"""CUDA C to one fat binary: machine code (SASS) for some architectures, and PTX that newer ones can still compile.

NVRTC of NVIDIA's wheels does it (``pip install adr-tvm[cuda]``), else an installed nvcc. Sums and products are rounded
as IEEE 754 says, and a product with the sum that follows it is one fused multiply-add: no fast-math, since a hash bit
must not depend on the compiler's mood.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adr_tvm.errors import MissingDependencyError

NEEDS = "CUDA targets need NVRTC (pip install 'adr-tvm[cuda]') or nvcc in PATH; neither is there"
_WHEELS = ("cuda.bindings", "nvidia")
_FLAGS = ("--std=c++17", "--fmad=true", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--diag-suppress=177")
# What TVM's sources include of the C++ library; the real headers took 4.7 of 6.1 s for a kernel and an architecture.
_HEADERS = {
    "math_constants.h": """#pragma once
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000)
#define CUDART_NAN __longlong_as_double(0xfff8000000000000)
""",
    "cuda/std/cstdint": """#pragma once
namespace cuda { namespace std {
using int8_t = signed char; using int16_t = short; using int32_t = int; using int64_t = long long;
using uint8_t = unsigned char; using uint16_t = unsigned short; using uint32_t = unsigned int;
using uint64_t = unsigned long long;
} }
""",
    "cuda/std/type_traits": """#pragma once
namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class T> struct is_floating_point { static constexpr bool value = T(0.5) != T(0); };
template <class T> struct is_integral { static constexpr bool value = T(0.5) == T(0); };
template <class T> struct is_signed { static constexpr bool value = T(-1) < T(0); };
template <class T> struct is_unsigned { static constexpr bool value = T(-1) > T(0); };
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
} }
""",
}
_NEEDS_HEADERS = re.compile(r"#include <cuda_(?:fp16|bf16)\.h>")  # those are taken from the wheel of the runtime
_KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What a kernel uses on one architecture, as the assembler tells.

    Attributes:
        kernel: its name.
        architecture: such as ``sm_80``.
        registers: of a thread.
        spills: bytes of a thread that registers had no room for, stores and loads together.
        stack: bytes of a thread in local memory, spills among them.
        shared: bytes of a block in shared memory.
        code: the architecture's machine code, all kernels of the source together; empty where nvcc made it.
    """

    kernel: str
    architecture: str
    registers: int
    spills: int
    stack: int
    shared: int
    code: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True)
class CodeObject:
    """A fat binary, which the driver loads as it is.

    Attributes:
        data: its bytes.
        resources: of every kernel on every architecture.
    """

    data: bytes
    resources: tuple[Resources, ...]


def compiler() -> str:
    """``nvrtc`` or ``nvcc``, whichever is there; NVRTC first, whose version is that of the wheels.

    Raises:
        MissingDependencyError: neither is.
    """
    if _nvrtc_usable():
        return "nvrtc"
    if shutil.which("nvcc") is not None:
        return "nvcc"
    raise MissingDependencyError(NEEDS)


def has_compiler() -> bool:
    """Whether code for CUDA can be compiled here."""
    return _nvrtc_usable() or shutil.which("nvcc") is not None


@functools.cache
def _nvrtc_usable() -> bool:
    if any(importlib.util.find_spec(name.partition(".")[0]) is None for name in _WHEELS):
        return False
    try:
        from cuda.bindings import nvfatbin, nvrtc

        nvrtc.nvrtcVersion()
        nvfatbin.version()
        return True
    except (ImportError, RuntimeError):
        return False


def compile_code(source: str, architectures: Sequence[str], ptx: str | None = None) -> CodeObject:
    """Compile CUDA C.

    Args:
        source: as TVM generates it.
        architectures: that get machine code, such as ``sm_80``.
        ptx: virtual architecture whose PTX is added, such as ``compute_90``.

    Raises:
        MissingDependencyError: there is no compiler.
        RuntimeError: it refuses the source.
    """
    make = _with_nvrtc if compiler() == "nvrtc" else _with_nvcc
    return make(source, list(architectures), ptx)


def _with_nvrtc(source: str, architectures: list[str], ptx: str | None) -> CodeObject:
    from cuda.bindings import nvfatbin

    made = {arch: _nvrtc(source, arch) for arch in [*architectures, *([ptx] if ptx else [])]}
    handle = nvfatbin.create(["-64"], 1)
    try:
        for arch, (code, _) in made.items():
            number = arch.partition("_")[2]
            if arch.startswith("sm_"):
                nvfatbin.add_cubin(handle, code, len(code), number, "kernels")
            else:
                nvfatbin.add_ptx(handle, code, len(code), number, "kernels", "")
        data = bytearray(nvfatbin.size(handle))
        nvfatbin.get(handle, data)
    finally:
        nvfatbin.destroy(handle)
    resources = (replace(each, code=code) for code, log in made.values() for each in _resources(log))
    return CodeObject(bytes(data), tuple(resources))


def _nvrtc(source: str, arch: str) -> tuple[bytes, str]:
    """Code for one architecture, and the log."""
    from cuda.bindings import nvrtc

    def checked(result: tuple, log: str = "") -> tuple:
        if int(result[0]) != 0:
            raise RuntimeError(f"NVRTC for {arch}: {nvrtc.nvrtcGetErrorString(result[0])[1].decode()}\n{log}")
        return result[1:]

    machine = arch.startswith("sm_")
    flags = [f"--gpu-architecture={arch}", *_FLAGS]
    flags += ["--ptxas-options=-v"] if machine else []
    flags += [f"-I{_header_folder()}"] if _NEEDS_HEADERS.search(source) else []
    texts, names = [text.encode() for text in _HEADERS.values()], [name.encode() for name in _HEADERS]
    (program,) = checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", len(names), texts, names))
    try:
        result = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        # Written in place: never bytes, since Python shares those of length 1, such as the log of an empty one.
        log = bytearray(checked(nvrtc.nvrtcGetProgramLogSize(program))[0])
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        checked(result, log.decode(errors="replace"))
        size, read = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if machine else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        code = bytearray(checked(size(program))[0])
        checked(read(program, code))
        return bytes(code), log.decode(errors="replace")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@functools.cache
def _header_folder() -> str:
    """Where the headers of 16-bit types are: those of NVRTC's wheels, else of an installed nvcc.

    Raises:
        MissingDependencyError: nowhere.
    """
    wheels = importlib.util.find_spec("nvidia")
    places = [] if wheels is None else list(wheels.submodule_search_locations or ())
    folders = [Path(place, "cu13", "include") for place in places]
    nvcc = shutil.which("nvcc")
    folders += [] if nvcc is None else [Path(nvcc).resolve().parent.parent / "include"]
    for folder in folders:
        if (folder / "cuda_fp16.h").is_file() and (folder / "cuda_bf16.h").is_file():
            return str(folder)
    raise MissingDependencyError("16-bit types need CUDA's headers (pip install 'adr-tvm[cuda]'); they are not there")


def _with_nvcc(source: str, architectures: list[str], ptx: str | None) -> CodeObject:
    codes = [f"-gencode=arch=compute_{each[3:]},code={each}" for each in architectures]
    codes += [f"-gencode=arch={ptx},code={ptx}"] if ptx else []
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        path.write_text(source)
        command = ["nvcc", "-fatbin", *_FLAGS, *codes, "-Xptxas=-v", "-o", str(made), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            raise RuntimeError(f"nvcc: {done.stderr[-4000:]}")
        return CodeObject(made.read_bytes(), tuple(_resources(done.stderr)))


def _resources(log: str) -> list[Resources]:
    """What the assembler says (``ptxas -v``)."""
    found = []
    for part in re.split(r"(?=Compiling entry function)", log):
        kernel, stack, used, shared = (each.search(part) for each in (_KERNEL, _STACK, _USED, _SHARED))
        if kernel and used:
            frame, stores, loads = (int(n) for n in stack.groups()) if stack else (0, 0, 0)
            smem = int(shared.group(1)) if shared else 0
            found.append(Resources(kernel[1], kernel[2], int(used.group(1)), stores + loads, frame, smem))
    return found
