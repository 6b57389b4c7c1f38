"""Reading an ONNX file that nobody vouches for: size, protobuf, external data, weights.

External data are read by onnx's own loader only, after their location was found to lie inside the model's
folder.
"""

from __future__ import annotations

import hashlib
import math
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor

from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_limits import (
    MAX_OPSET,
    MIN_OPSET,
    Limits,
    node_label,
    one_line,
    quoted,
    size_text,
    tensor_bytes,
    walk_graphs,
)


def load_proto(path: Path, limits: Limits) -> tuple[onnx.ModelProto, str]:
    """Read the file and its external data.

    Returns:
        The model with all data in memory, and the SHA-256 of the file followed by the external data.

    Raises:
        ModelError: unreadable, too large, not ONNX, truncated, outside the supported opsets, too many nodes,
            weights that are inconsistent, too large or NaN, external data missing or outside the folder.
    """
    data = _read(path, limits)
    digest = hashlib.sha256(data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated ({one_line(error, 120)})") from None
    _check_header(path, model)
    _check_counts(path, model, limits)
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ModelError(f"{path}: a name in the model is not UTF-8 text; export it again")
    _load_tensors(path, model, limits, digest)
    return model, digest.hexdigest()


def _read(path: Path, limits: Limits) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ModelError(f"{path}: not a regular file; give the path of an .onnx file")
        if info.st_size > limits.file_bytes:
            raise ModelError(
                f"{path}: the file has {size_text(info.st_size)}; the limit is {size_text(limits.file_bytes)}"
            )
        if info.st_size == 0:
            raise ModelError(f"{path}: the file is empty")
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"{path}: cannot be read ({reason})") from None


def _check_header(path: Path, model: onnx.ModelProto) -> None:
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model (it has no graph or no opset)")
    if model.ir_version < 3:
        raise ModelError(f"{path}: IR version {model.ir_version} is not supported; export the model again")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise ModelError(f"{path}: names {len(versions)} versions of the standard opset; exactly one is needed")
    if not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise ModelError(
            f"{path}: opset {versions[0]} is not supported; export the model with an opset from "
            f"{MIN_OPSET} to {MAX_OPSET} (or convert it with onnx.version_converter)"
        )
    if model.functions:
        raise ModelError(f"{path}: model-local functions are not supported; inline them (onnx.inliner)")


def _check_counts(path: Path, model: onnx.ModelProto, limits: Limits) -> None:
    nodes = 0
    for graph in walk_graphs(model.graph):
        nodes += len(graph.node)
        if nodes > limits.nodes:
            raise ModelError(f"{path}: more than {limits.nodes} nodes; the limit is {limits.nodes}")
        if graph.sparse_initializer:
            raise ModelError(f"{path}: sparse initializers are not supported; export dense weights")
        for node in graph.node:
            if max(len(node.input), len(node.output)) > limits.node_inputs:
                raise ModelError(f"{path}: {node_label(node)} has more than {limits.node_inputs} inputs or outputs")


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Every name that is read later; protobuf hands out bytes where one is not UTF-8."""
    yield from (entry.domain for entry in model.opset_import)
    for graph in walk_graphs(model.graph):
        yield graph.name
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)
    for _, tensor in _tensors(model):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor with how an error names it."""
    for graph in walk_graphs(model.graph):
        for tensor in graph.initializer:
            yield f"initializer {quoted(tensor.name)}", tensor
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]:
                    yield f"{node_label(node)}: attribute {quoted(attribute.name)}", tensor


def _load_tensors(path: Path, model: onnx.ModelProto, limits: Limits, digest: hashlib._Hash) -> None:
    total = 0
    for label, tensor in _tensors(model):
        where = f"{path}: {label}"
        size = tensor_bytes(where, tensor.data_type, tensor.dims, limits)
        total += size
        if total > limits.initializer_bytes:
            raise ModelError(f"{path}: the weights take more than {size_text(limits.initializer_bytes)}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _load_external(path, where, tensor, size, limits)
            digest.update(tensor.raw_data)
        _check_values(where, tensor, size)


def _load_external(path: Path, where: str, tensor: onnx.TensorProto, size: int, limits: Limits) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    windows, posix = PureWindowsPath(location), PurePosixPath(location)
    if not location or posix.is_absolute() or windows.anchor or ".." in (*windows.parts, *posix.parts):
        raise ModelError(
            f"{where}: external data at {quoted(location)} are not inside the model's folder; "
            "save the model with its data beside it"
        )
    folder = path.parent.resolve()
    try:
        target = (folder / location).resolve(strict=True)
        info = target.stat()
    except (OSError, ValueError, RuntimeError):
        raise ModelError(f"{where}: the external data file {quoted(location)} is missing in {folder}") from None
    if not target.is_relative_to(folder):
        raise ModelError(f"{where}: external data at {quoted(location)} lead outside the model's folder")
    if not stat.S_ISREG(info.st_mode) or info.st_size > limits.file_bytes:
        raise ModelError(
            f"{where}: the external data file {quoted(location)} is not a regular file of at most "
            f"{size_text(limits.file_bytes)}"
        )
    length = entries.get("length", str(info.st_size))
    if not (length.isascii() and length.isdigit()) or int(length) != size:
        raise ModelError(f"{where}: its external data have {one_line(length, 20)} bytes, its shape needs {size}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_external_data_for_tensor(tensor, str(folder))
    except Exception as error:  # onnx raises its own, ValueError and OSError for the same kinds of fault
        raise ModelError(f"{where}: its external data cannot be read ({one_line(error, 150)})") from None


def _check_values(where: str, tensor: onnx.TensorProto, size: int) -> None:
    """The data must be exactly as long as the shape says, and no weight may be NaN."""
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is stored in segments, which is not supported")
    if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
        raise ModelError(f"{where} has {len(tensor.raw_data)} bytes of data, its shape needs {size}; truncated?")
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # to_array raises whatever NumPy does
        raise ModelError(f"{where} is inconsistent ({one_line(error, 150)})") from None
    if values.size != math.prod(tensor.dims):
        raise ModelError(f"{where} has {values.size} values, its shape needs {math.prod(tensor.dims)}")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ModelError(f"{where} holds NaN; train or export the model again")
