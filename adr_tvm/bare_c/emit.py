"""Writes a graph as a folder of C: driver, weights and the kernels that it needs.

| file | content |
|---|---|
| ``model.h``, ``model.c`` | the network: one function |
| ``weights.h``, ``weights.c`` | its constants; as a blob (``blob.py``) where they are in ``weights.bin`` |
| ``adr_kernels.h`` and other ``.c`` files | the kernels |
| ``example/`` | a program that runs it, here and on Arm's MPS2 board or under QEMU |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

import adr_tvm
from adr_tvm.bare_c import blob
from adr_tvm.bare_c.files import EXAMPLE, WEIGHTS_FILE
from adr_tvm.bare_c.graph import Graph, Operator, Tensor
from adr_tvm.bare_c.int8_calls import INT8_HEADER
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.bare_c.kernel_calls import kernel_call
from adr_tvm.bare_c.memory_plan import ALIGNMENT, MemoryPlan, Place, plan_memory
from adr_tvm.jsonfile import write_bytes

C_TYPES = {"float32": "float", "int32": "int32_t", "int8": "int8_t"}
HEADER = "adr_kernels.h"
NUMBERS_IN_LINE = 8


@dataclass(frozen=True)
class CNetwork:
    """A graph, ready to be written.

    Attributes:
        graph: the network.
        model, sha256: file name and hash of the ONNX file.
        input_names, output_names: as the ONNX file has them.
        blob: whether constants are in a file of their own, not in the sources.
    """

    graph: Graph
    model: str
    sha256: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    blob: bool = False

    @cached_property
    def calls(self) -> list[KernelCall]:
        """Kernels in the order of the operators."""
        return [kernel_call(self.graph, operator) for operator in self.graph.operators]

    @property
    def headers(self) -> list[str]:
        """Headers that declare the kernels."""
        integer = any(tensor.dtype == "int8" for tensor in self.graph.tensors.values())
        return [HEADER, INT8_HEADER] if integer else [HEADER]

    @cached_property
    def memory(self) -> MemoryPlan:
        """Where the tensors are."""
        return plan_memory(self.graph, self.calls)

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """All constants by their C name."""
        return {
            f"{operator.output}_{part}": array
            for operator, call in zip(self.graph.operators, self.calls, strict=True)
            for part, array in (call.constants or {}).items()
            if array is not None
        }

    @property
    def weights_bytes(self) -> int:
        """Size of the constants, or of their file."""
        if self.blob:
            return blob.offsets(self.constants)[1]
        return sum(array.nbytes for array in self.constants.values())


def write_c(folder: Path, network: CNetwork) -> list[Path]:
    """Write the files into a folder; returns those of the network that are compiled.

    Raises:
        UsageError: the folder cannot be written.
    """
    files = {
        "model.h": _render("model.h.j2", network),
        "model.c": _render("model.c.j2", network),
        "weights.h": _weights_header(network),
    }
    if network.blob:
        write_bytes(folder / WEIGHTS_FILE, blob.blob(network.constants))
    else:
        files["weights.c"] = _weights_source(network.constants)
    package = resources.files("adr_tvm.bare_c")
    for name in sorted({HEADER, *(source for call in network.calls for source in call.sources)}):
        files[name] = package.joinpath("kernels", name).read_text(encoding="utf-8")
    example = {"main.c": _render("main.c.j2", network)}
    example |= {name: package.joinpath("example", name).read_text(encoding="utf-8") for name in EXAMPLE}
    for name, text in [*files.items(), *((f"example/{name}", text) for name, text in example.items())]:
        write_bytes(folder / name, text.encode())
    return [folder / name for name in files if name.endswith(".c")]


def _render(template: str, network: CNetwork) -> str:
    environment = Environment(
        loader=PackageLoader("adr_tvm.bare_c"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    graph, memory = network.graph, network.memory
    inputs = [_described(graph.tensors[n], o) for n, o in zip(graph.inputs, network.input_names, strict=True)]
    outputs = [_described(graph.tensors[n], o) for n, o in zip(graph.outputs, network.output_names, strict=True)]
    return environment.get_template(template).render(
        model=_comment(network.model),
        sha256=network.sha256,
        version=adr_tvm.__version__,
        inputs=inputs,
        outputs=outputs,
        signature=", ".join(
            [f"const {t['ctype']} *{t['name']}" for t in inputs] + [f"{t['ctype']} *{t['name']}" for t in outputs]
        ),
        pointers=["arena", *(["weights"] if network.blob else []), *graph.inputs, *graph.outputs],
        blob=_blob_fields(network) if network.blob else None,
        arena_bytes=memory.arena_bytes,
        alignment=ALIGNMENT,
        weights_bytes=network.weights_bytes,
        reuse_layers=[_comment(layer.name) for layer in graph.reuse_layers],
        headers=network.headers,
        calls=list(_statements(network)),
        copies=bool(memory.copies),
        uses_weights=bool(network.constants),
        uses_arena=any(place.where == "arena" for place in memory.places.values()),
    )


def _described(tensor: Tensor, onnx: str) -> dict[str, Any]:
    q = tensor.quantisation
    return {
        "name": tensor.name,
        "onnx": _comment(repr(onnx)),
        "elements": tensor.elements,
        "ctype": C_TYPES[tensor.dtype],
        "dims": "".join(f"[{dim}]" for dim in tensor.shape),
        "note": "" if q is None else f", real = {q.scale:.9g} * (integer - {q.zero_point})",
    }


def _statements(network: CNetwork) -> Any:
    graph, memory, counted = network.graph, network.memory, 0
    for i, (operator, call) in enumerate(zip(graph.operators, network.calls, strict=True)):
        label = f"{operator.output}_parameters" if call.constants else f"{operator.kind}_{i}_parameters"
        arguments = [f"&{label}"]
        arguments += ["NULL" if n is None else _pointer(graph.tensors[n], memory.places[n], True) for n in call.inputs]
        arguments += [
            "NULL" if array is None else f"model_{operator.output}_{part}"
            for part, array in (call.constants or {}).items()
        ]
        arguments.append(_pointer(graph.tensors[operator.output], memory.places[operator.output], False))
        if call.scratch:
            arguments.append(f"at + {memory.scratch[i]}")
        if call.counts:
            arguments.append(f"counts == NULL ? NULL : counts + {2 * counted}")
            counted += 1
        statement = f"{call.function}({', '.join(arguments)});"
        if not call.function:
            size = graph.tensors[operator.output].bytes
            statement = f"memcpy({arguments[-1]}, {arguments[1]}, {size});" if i in memory.copies else ""
        yield {
            "label": label,
            "struct": call.struct,
            "parameters": c_value(call.parameters or {}),
            "comment": _step_comment(graph, operator),
            "statement": statement,
        }


def _pointer(tensor: Tensor, place: Place, read: bool) -> str:
    if place.where != "arena":
        return place.name
    return f"({'const ' if read else ''}{C_TYPES[tensor.dtype]} *)(void *)(at + {place.offset})"


def _step_comment(graph: Graph, operator: Operator) -> str:
    shapes = ["x".join(map(str, graph.tensors[n].shape[1:])) for n in (operator.inputs[0], operator.output)]
    return f"{operator.kind} {_comment(operator.name)}: {' -> '.join(shapes)}"


def _comment(text: str) -> str:
    """Text that cannot end a comment, nor its line."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/").replace("??", "? ")


def c_value(value: Any) -> str:
    """A value as a C initialiser; mappings are structs, sequences arrays, strings stand as they are."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f".{name} = {c_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return c_float(float(value))
    if isinstance(value, Sequence | np.ndarray):
        return "{" + ", ".join(c_value(each) for each in value) + "}"
    return str(int(value))


def c_float(value: float) -> str:
    """A float32 as a C literal that reads back the same."""
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = f"{value:.9g}"
    return (text if any(c in text for c in ".en") else f"{text}.0") + "f"


def _blob_fields(network: CNetwork) -> dict[str, int]:
    content = blob.blob(network.constants)
    return {
        "alignment": blob.ALIGNMENT,
        "header": blob.HEADER_BYTES,
        "magic": blob.MAGIC,
        "crc": blob.checksum(content),
    }


def _weights_header(network: CNetwork) -> str:
    constants = network.constants
    if network.blob:
        places, _ = blob.offsets(constants)
        lines = ["/* Where each is in weights.bin, whose first byte model.c calls ``weights_at``. */"]
        lines += [
            f"#define model_{name} ((const {C_TYPES[str(a.dtype)]} *)(const void *)(weights_at + {places[name]})) "
            f"/* [{a.size}] */"
            for name, a in constants.items()
        ]
    else:
        lines = [f"extern const {C_TYPES[str(a.dtype)]} model_{name}[{a.size}];" for name, a in constants.items()]
    head = ["/* The constants of the network. */", "#ifndef WEIGHTS_H", "#define WEIGHTS_H", "", "#include <stdint.h>"]
    return "\n".join([*head, "", *lines, "", "#endif", ""])


def _weights_source(constants: Mapping[str, np.ndarray]) -> str:
    text = ['#include "weights.h"', "", "#include <math.h>", ""]
    for name, array in constants.items():
        flat = array.reshape(-1)
        write = c_float if array.dtype == np.float32 else str
        numbers = [write(v) for v in flat.tolist()]
        text.append(f"const {C_TYPES[str(array.dtype)]} model_{name}[{flat.size}] = {{")
        for i in range(0, len(numbers), NUMBERS_IN_LINE):
            text.append("  " + ", ".join(numbers[i : i + NUMBERS_IN_LINE]) + ",")
        text.append("};\n")
    return "\n".join(text)
