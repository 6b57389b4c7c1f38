"""Networks as bare C, compiled here with every warning on and called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from adr_tvm.bare_c.emit import CNetwork, write_c
from adr_tvm.bare_c.from_relax import graph_of
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.options import CompileOptions
from adr_tvm.plan import ReusePlan

CC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(CC is None, reason="gcc is not installed (apt-get install gcc)")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wdouble-promotion", "-Wstrict-prototypes"]
FLAGS = ["-std=c99", "-O2", *WARNINGS, "-Wcast-align", "-Wundef", "-Werror"]
OBJECTS = tempfile.TemporaryDirectory(prefix="adr-bare-c-")


def network(model: Path, plan: ReusePlan | None = None) -> CNetwork:
    """A model as bare C; None: dense."""
    loaded = LoadedNetwork(model, CompileOptions())
    checked = loaded.checked
    plan = plan or ReusePlan(checked.sha256, "cpu", 0, "nmse", None, {})
    names = [tuple(spec.name for spec in specs) for specs in (checked.inputs, checked.outputs)]
    return CNetwork(graph_of(loaded.mod, checked, plan), model.name, checked.sha256, names[0], names[1])


def compiled(source: Path, command: tuple[str, ...] = (str(CC), "-fPIC", *FLAGS)) -> str:
    """The object of a source; a kernel is compiled once, whichever network it is of."""
    pattern = "*.h" if source.name in ("model.c", "weights.c") else "adr_*.h"
    text = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob(pattern))))
    digest = hashlib.sha256(" ".join(command).encode() + text).hexdigest()
    made = Path(OBJECTS.name) / f"{source.stem}-{digest}.o"
    if not made.is_file():
        subprocess.run([*command, "-c", "-o", str(made), str(source)], check=True)
    return str(made)


class Compiled:
    """A network in C, compiled for this machine.

    Args:
        net: what to write.
        folder: takes the files.
    """

    def __init__(self, net: CNetwork, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.net, library = net, folder / "model.so"
        objects = [compiled(path) for path in write_c(folder, net)]
        subprocess.run([str(CC), "-shared", "-o", str(library), *objects, "-lm"], check=True)
        self.run = ctypes.CDLL(str(library)).model_run
        self.run.restype = ctypes.c_int32

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of one sample; the arena starts full of NaN, and nothing beyond it is touched."""
        graph, size = self.net.graph, self.net.memory.arena_bytes
        memory = np.full(size + 96, 0xFF, np.uint8)
        start = -memory.ctypes.data % 16 + 16
        outputs = [np.zeros(graph.tensors[name].shape, graph.tensors[name].dtype) for name in graph.outputs]
        self.counts = np.full((len(graph.reuse_layers), 2), -1, np.int32)
        given = [np.ascontiguousarray(array) for array in inputs]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*given, *outputs, self.counts)]
        arena = ctypes.c_void_p(memory.ctypes.data + start)
        assert self.run(arena, ctypes.c_size_t(size), *pointers) == 0
        assert (np.delete(memory, slice(start, start + size)) == 0xFF).all()
        return outputs
