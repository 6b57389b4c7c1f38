"""Feed broken models to a function, each in a forked process, and collect what it must not do.

A mutant may be accepted or refused with an ``AdrError`` of one line. Anything else fails: another exception,
death by a signal, or no answer in time.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from adr_tvm.errors import AdrError

_NUMBERS = (0, 1, 2, -1, 3, 7, 255, 4096, 65536, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"), 0.5, 3e9)
_MEMORY = 8 << 30


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, insert, delete or cut bytes at one to three places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        kind = rng.randrange(12)
        if kind < 5:
            out[at] ^= 1 << rng.randrange(8)
        elif kind < 7:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind < 9:
            out[at] = rng.randrange(256)
        elif kind == 9:
            out[at:at] = rng.randbytes(rng.randint(1, 4))
        elif kind == 10:
            del out[at : at + rng.randint(1, 8)]
        else:
            del out[rng.randrange(len(out) // 2, len(out)) :]
        out = out or bytearray(1)
    return bytes(out)


def mutate_fields(data: bytes, rng: random.Random) -> bytes:
    """Change one or two fields of the graph: a number, a name, a dimension, a type, an operator."""
    model = onnx.ModelProto.FromString(data)
    changes = (_change_attribute,) * 4 + (_change_tensor,) * 2 + (_rewire, _change_value)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(changes)(model.graph, rng.choice(model.graph.node), rng)
    return model.SerializeToString()


def _number(old: int, rng: random.Random) -> int:
    new = rng.choice((*_NUMBERS, old + 1, old - 1, old * 2, old * 1000, -old))
    return max(-(2**63), min(new, 2**63 - 1))


def _change_attribute(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    candidates = [a for n in graph.node for a in n.attribute]
    attribute = rng.choice(list(node.attribute) or candidates)
    if attribute.ints:
        if rng.randrange(4):
            at = rng.randrange(len(attribute.ints))
            attribute.ints[at] = _number(attribute.ints[at], rng)
        elif rng.randrange(2):
            attribute.ints.append(rng.choice(_NUMBERS))
        else:
            attribute.ints.pop()
    elif attribute.HasField("i"):
        attribute.i = _number(attribute.i, rng)
    elif attribute.HasField("f"):
        attribute.f = rng.choice(_FLOATS)
    elif attribute.HasField("s"):
        attribute.s = rng.choice((b"", b"SAME_LOWER", b"VALID", b"edge", b"linear", b"cubic", b"\xff\x00"))


def _rewire(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    names = [name for n in graph.node for name in (*n.input, *n.output)]
    kind = rng.randrange(5)
    if kind == 0:
        node.op_type = rng.choice(graph.node).op_type
    elif kind == 1 and node.output:
        node.output.append(rng.choice(names))
    elif kind == 2 and len(node.input) > 1:
        node.input.pop()
    elif kind == 3:
        node.input.append(rng.choice(names))
    elif node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nowhere"))


def _change_tensor(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    """An initializer gets other values, or another shape with data to match."""
    tensor = rng.choice(graph.initializer)
    array = onnx.numpy_helper.to_array(tensor).copy()
    kind = rng.randrange(4)
    if kind == 0 and array.size:
        at = rng.randrange(array.size)
        array.reshape(-1)[at] = rng.choice(_FLOATS if array.dtype.kind == "f" else _NUMBERS)
    elif kind == 1:
        array = array.reshape(-1) if array.ndim > 1 else array.reshape(1, -1)
    elif kind == 2:
        array = array[: len(array) // 2] if array.ndim else array.reshape(1)
    else:
        with np.errstate(invalid="ignore"):
            array = array.astype(rng.choice(("float32", "int64", "float64", "int32", "uint8")))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _change_value(graph: onnx.GraphProto, node: onnx.NodeProto, rng: random.Random) -> None:
    tensor = rng.choice((*graph.input, *graph.output)).type.tensor_type
    kind = rng.randrange(4)
    if kind == 0:
        tensor.elem_type = rng.randrange(20)
    elif kind == 1:
        tensor.shape.dim.add().dim_value = rng.choice(_NUMBERS)
    elif kind == 2 and tensor.shape.dim:
        tensor.shape.dim.pop()
    elif tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_value = rng.choice(_NUMBERS)


def make_mutants(models: Sequence[bytes], count: int, seed: int) -> list[bytes]:
    """``count`` mutants of the serialized models, one in two by bytes, the others by fields."""
    rng = random.Random(seed)
    kinds = (mutate_bytes, mutate_fields)
    return [kinds[i % 2](models[(i // 2) % len(models)], rng) for i in range(count)]


def run_hostile(
    function: Callable[[Path], object],
    mutants: Sequence[bytes],
    folder: Path,
    timeout: float = 10.0,
    workers: int = 2,
) -> list[str]:
    """Call ``function`` on a file of each mutant, each in a fork of this process.

    Import what the function needs before the call, so that each fork is cheap. A failing mutant stays in
    ``folder`` as ``mutant_<index>.onnx``.

    Returns:
        One text per failure: index and what happened.
    """
    failures: list[str] = []
    running: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(mutants))[::-1]
    while waiting or running:
        while waiting and len(running) < workers:
            index, data = waiting.pop()
            (folder / f"mutant_{index}.onnx").write_bytes(data)
            running[_fork(function, folder, index)] = (index, time.monotonic() + timeout)
        _reap(running, folder, failures)
        time.sleep(0.002)
    return failures


def _fork(function: Callable[[Path], object], folder: Path, index: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        try:
            function(folder / f"mutant_{index}.onnx")
            code = 0
        except AdrError as error:
            if "\n" in str(error):
                raise
            code = 0
    except BaseException:
        (folder / f"mutant_{index}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _reap(running: dict[int, tuple[int, float]], folder: Path, failures: list[str]) -> None:
    for pid, (index, deadline) in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and time.monotonic() < deadline:
            continue
        del running[pid]
        if not done:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            failures.append(f"mutant {index}: no answer in time")
        elif os.WIFSIGNALED(status):
            failures.append(f"mutant {index}: killed by {signal.Signals(os.WTERMSIG(status)).name}")
        elif os.WEXITSTATUS(status):
            note = folder / f"mutant_{index}.txt"
            text = note.read_text().strip() if note.exists() else f"exit status {os.WEXITSTATUS(status)}"
            failures.append(f"mutant {index}: {text}")
        else:
            (folder / f"mutant_{index}.onnx").unlink()
