"""Which ONNX initializer each weight of a canonical network came from, and where its entries lie there.

Canonicalising reorders weights: convolutions to [KH, KW, C, M], dense layers to [K, M] with rows in NHWC order. To be
able to write trained weights back, the network is canonicalised with every initializer replaced by the positions of its
entries; a weight of the result then says where each of its entries came from. Positions count on from initializer to
initializer and are given in two digits, each exact in float32, the higher one plus 1: entries that came from no
initializer are 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
import tvm
from onnx import TensorProto, numpy_helper

from adr_tvm.errors import ModelError
from adr_tvm.frontend.importer import import_onnx
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.passes import pipeline
from adr_tvm.passes.lift_parameters import Place, places

BASE = 4096
SETTINGS = frozenset({"Clip", "Dropout", "Pad", "Resize", "Upsample"})  # take numbers that are no weights as inputs


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a weight came from.

    Attributes:
        initializer: its name.
        positions: int64, of the weight's shape: index of each entry in the flat initializer.
    """

    initializer: str
    positions: np.ndarray


def canonical_for_training(checked: CheckedModel, target: tvm.target.Target) -> tvm.IRModule:
    """Import a model and bring it into the form that is trained; weights are constants."""
    return pipeline.run(pipeline.canonicalise_for_training(), import_onnx(checked, training=True), target)


def trace(checked: CheckedModel, target: tvm.target.Target) -> Iterator[Origin | None]:
    """The origin of each of ``places(main)`` of the canonical network, in order; None where no initializer is.

    Raises:
        ModelError: a weight is computed from its initializer, not only reordered, so it could not be written back.
    """
    path = checked.path
    digits = [canonical_for_training(_positions(checked, high), target)["main"] for high in (False, True)]
    spans, start = [], 0
    for initializer in checked.proto.graph.initializer:
        size = math.prod(initializer.dims)
        spans.append((start, start + size, initializer.name))
        start += size
    for low, high in zip(*map(places, digits), strict=True):
        if not high.value.any() and not low.value.any():
            yield None
            continue
        position = _exact(high) * BASE - BASE + _exact(low)
        first = int(position.min())
        begin, end, name = next((s for s in spans if s[0] <= first < s[1]), (0, 0, ""))
        if end - begin != position.size or not _is_permutation(position - begin):
            raise ModelError(
                f"{path}: a weight of {high.operator.removeprefix('relax.')} number {high.call} is not one initializer "
                "of the file in another order, so trained values could not be written back: export the model without "
                "weights that are computed, shared in part, or added together"
            )
        yield Origin(name, position - begin)


def _positions(checked: CheckedModel, high: bool) -> CheckedModel:
    """The model with one digit of the position in place of each floating-point entry of its initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(_without_initializers(checked.proto))
    settings = {name for node in checked.proto.graph.node if node.op_type in SETTINGS for name in node.input[1:]}
    start = 0
    for initializer in checked.proto.graph.initializer:
        size = math.prod(initializer.dims)
        if initializer.data_type == TensorProto.FLOAT and initializer.name not in settings:
            position = np.arange(start, start + size, dtype=np.int64)
            digit = position // BASE + 1 if high else position % BASE
            array = digit.astype(np.float32).reshape(tuple(initializer.dims))
            proto.graph.initializer.append(numpy_helper.from_array(array, initializer.name))
        else:
            proto.graph.initializer.append(initializer)
        start += size
    return replace(checked, proto=proto)


def _without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without its weights, which are not copied either."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, producer_name="adr_tvm")
    for name in ("node", "input", "output", "value_info"):
        getattr(light.graph, name).extend(getattr(proto.graph, name))
    light.graph.name = proto.graph.name
    return light


def _exact(place: Place) -> np.ndarray:
    return np.rint(place.value).astype(np.int64)


def _is_permutation(positions: np.ndarray) -> bool:
    """Whether each of 0, 1, ... stands once in the array."""
    if positions.min() < 0 or positions.max() >= positions.size:
        return False
    return bool((np.bincount(positions.reshape(-1), minlength=positions.size) == 1).all())


def with_weights(proto: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a model with other values of some initializers, float32 of their shapes."""
    result = _without_initializers(proto)
    for initializer in proto.graph.initializer:
        array = arrays.get(initializer.name)
        if array is not None:
            shape = tuple(initializer.dims)
            initializer = numpy_helper.from_array(
                np.ascontiguousarray(array, np.float32).reshape(shape), initializer.name
            )
        result.graph.initializer.append(initializer)
    return result
