"""Runs code for CUDA on this machine's processor: CUDA C as TVM generates it, compiled by g++ (``cuda_emulator.hpp``).

Within ``emulated_cuda`` everything that ``tvm.compile`` builds for a CUDA target runs here, host code included, on
``tvm.cuda()``, whose memory is this machine's. What it cannot show: speed, and what depends on threads that run at the
same time; barriers are checked by running the threads of a block in several orders.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import tvm
import tvm_ffi
from tvm.support import cc

TIMER = "runtime.timer.cuda"
ORDERS = (0, 1, 2)  # ascending, descending, mixed
_TAGS = re.compile(r"(block|thread)Idx\.([xyz])")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def _emulated(source: str, kernels: dict[str, str]) -> Path:
    """Library of a CUDA source; ``kernels``: launch parameters by name, such as ``bx tx``."""
    start = source.index('extern "C" __global__')
    wrappers = "".join(
        f'extern "C" __attribute__((visibility("default"))) int __tvm_ffi_{name}'
        "(void*, const TVMFFIAny* args, int32_t count, TVMFFIAny*) {\n"
        f"  if (emulated::recorded(__tvm_ffi_{name}, args, count)) return 0;\n"
        f'  return emulated::launch({name}, args, count, "{tags}");\n}}\n'
        for name, tags in kernels.items()
    )
    # C++ wants the alignment of a static variable first.
    kernels_text = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 __shared__", source[start:])
    text = f'#include <tvm/ffi/c_api.h>\n#include "cuda_emulator.hpp"\n{kernels_text}\n{wrappers}'
    path = Path(_folder().name) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        includes = [
            tvm_ffi.libinfo.find_include_path(),
            tvm_ffi.libinfo.find_dlpack_include_path(),
            Path(__file__).parent,
        ]
        fma = ["-mfma"] if platform.machine() == "x86_64" else []
        command = [
            cc.get_cc(),
            "-std=c++17",
            "-O1",
            "-fexpensive-optimizations",
            "-w",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            *fma,
        ]
        command += ["-ffp-contract=fast", *(f"-I{each}" for each in includes), "-x", "c++", "-", "-o", str(path)]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
    return path


@contextmanager
def thread_order(order: int) -> Iterator[None]:
    """Within the block the threads of a block run in this order, one of ``ORDERS``."""
    with mock.patch.dict(os.environ, EMULATED_ORDER=str(order)):
        yield


@contextmanager
def old_copies() -> Iterator[None]:
    """Within the block copies into shared memory go through registers, as on GPUs before sm_80."""
    with mock.patch.dict(os.environ, EMULATED_OLD_COPIES="1"):
        yield


@contextmanager
def emulated_cuda() -> Iterator[list[str]]:
    """Within the block CUDA is this machine's processor; yields the sources of what is compiled."""
    sources: list[str] = []

    def create(code: bytes, _format: str, functions: dict, _source: dict) -> tvm_ffi.Module:
        source = bytes(code).decode()
        sources.append(source)
        kernels = {
            str(name): "".join(f"{a[0]}{b}" for a, b in _TAGS.findall(" ".join(map(str, info.launch_param_tags))))
            for name, info in functions.items()
        }
        return tvm_ffi.load_module(str(_emulated(source, kernels)))

    replaced = {
        "ffi.Module.create.cuda": create,
        "device_api.cuda": tvm.get_global_func("device_api.cpu"),
        "device_api.cuda_host": tvm.get_global_func("device_api.cpu"),
        "__tvm_set_device": lambda *_: None,
    }
    before = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in (*replaced, TIMER)}
    if before[TIMER] is not None:  # where the true runtime was loaded: of CUDA events, which need a GPU
        tvm_ffi.registry.remove_global_func(TIMER)
    for name, function in replaced.items():
        tvm_ffi.register_global_func(name, function, override=True)
    try:
        yield sources
    finally:
        for name, function in before.items():
            if function is None:
                if name != TIMER:
                    tvm_ffi.registry.remove_global_func(name)
            else:
                tvm_ffi.register_global_func(name, function, override=True)


_TAKE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
_ARGUMENT = 16  # bytes of a TVMFFIAny


class EmulatedGraphs:
    """A ``GraphDriver``: launches on its stream are recorded with their arguments and do nothing, until the graph runs.

    Attributes:
        graphs: (function, arguments) of each launch of the graphs that are there, by number.
        launched: numbers of the graphs that were started, in order.
    """

    def __init__(self) -> None:
        self.graphs: dict[int, list[tuple[int, bytes]]] = {}
        self.launched: list[int] = []
        self._made = 0

    def capture(self, run) -> int:
        """See ``GraphDriver``."""
        taken: list[tuple[int, bytes]] = []
        take = _TAKE(lambda kernel, args, count: taken.append((kernel, ctypes.string_at(args, _ARGUMENT * count))))
        stream = ctypes.cast(take, ctypes.c_void_p)  # the emulator takes a stream for a pointer to the function
        run(ctypes.addressof(stream))
        self._made += 1
        self.graphs[self._made] = taken
        return self._made

    def launch(self, graph: int) -> None:
        """See ``GraphDriver``."""
        self.launched.append(graph)
        for kernel, args in self.graphs[graph]:
            assert _LAUNCH(kernel)(None, ctypes.create_string_buffer(args), len(args) // _ARGUMENT, None) == 0

    def drop(self, graph: int) -> None:
        """See ``GraphDriver``."""
        del self.graphs[graph]
