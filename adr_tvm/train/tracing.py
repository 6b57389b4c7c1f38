"""Which ONNX initializer each weight of a canonical network came from, and where its entries lie there.

Canonicalising reorders weights: convolutions to [KH, KW, C, M], dense layers to [K, M] with rows in NHWC order. To be
able to write trained weights back, the network is canonicalised with every entry of an initializer replaced by a code
of its position; a weight of the result then says where each of its entries came from. Positions count on from
initializer to initializer. A code is a normal float32 above 0, whose bits are the position times an odd number (modulo
2^30), counted from the smallest one: adding 0 leaves it as it is, and entries that were computed with decode to no such
order. Entries that came from no initializer are 0.
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
from adr_tvm.passes.lift_parameters import places

LIMIT = 2**30  # positions
FACTOR = np.uint32(0x1E3779B1)
INVERSE = np.uint32(pow(int(FACTOR), -1, LIMIT))
SMALLEST = np.float32(np.finfo(np.float32).smallest_normal).view(np.uint32)
SETTINGS = frozenset({"Clip", "Dropout", "Pad", "Resize", "Upsample"})  # take numbers that are no weights as inputs


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a weight came from.

    Attributes:
        initializer: its name.
        positions: uint32, of the weight's shape: index of each entry in the flat initializer.
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
    spans, start = [], 0
    for initializer in checked.proto.graph.initializer:
        size = math.prod(initializer.dims)
        spans.append((start, start + size, initializer.name))
        start += size
    if start > LIMIT:
        raise ModelError(f"{path}: has {start} weights; networks of up to 2^30 can be trained")
    canonical = canonical_for_training(_positions(checked), target)["main"]
    for place in places(canonical):
        if not place.value.any():
            yield None
            continue
        position = _decoded(place.value)
        first = int(position.min())
        begin, end, name = next((s for s in spans if s[0] <= first < s[1]), (0, 0, ""))
        position -= np.uint32(begin)
        if end - begin != position.size or not _is_permutation(position):
            operator = place.operator.removeprefix("relax.")
            raise ModelError(
                f"{path}: a weight of {operator} number {place.call} is not one initializer of the file in another "
                "order, so trained values could not be written back: export the model without "
                "weights that are computed, shared in part, or added together"
            )
        yield Origin(name, position)


def _positions(checked: CheckedModel) -> CheckedModel:
    """The model with the code of its position in place of each floating-point entry of its initializers."""
    proto = _without_initializers(checked.proto)
    settings = {name for node in checked.proto.graph.node if node.op_type in SETTINGS for name in node.input[1:]}
    start = 0
    for initializer in checked.proto.graph.initializer:
        size = math.prod(initializer.dims)
        if initializer.data_type == TensorProto.FLOAT and initializer.name not in settings:
            array = _codes(start, size).reshape(tuple(initializer.dims))
            proto.graph.initializer.append(numpy_helper.from_array(array, initializer.name))
        else:
            proto.graph.initializer.append(initializer)
        start += size
    return replace(checked, proto=proto)


def _codes(start: int, size: int) -> np.ndarray:
    """float32 [size], of the positions from ``start`` on."""
    codes = np.arange(start, start + size, dtype=np.uint32)
    codes *= FACTOR
    codes %= np.uint32(LIMIT)
    codes += SMALLEST
    return codes.view(np.float32)


def _decoded(codes: np.ndarray) -> np.ndarray:
    """Positions, uint32; what is no code gives one that fits no order."""
    positions = np.array(codes, np.float32, order="C").view(np.uint32)
    positions -= SMALLEST
    strange = positions >= LIMIT
    positions *= INVERSE
    positions %= np.uint32(LIMIT)
    positions[strange] = LIMIT
    return positions


def _without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without its weights, which are not copied either."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, producer_name="adr_tvm")
    for name in ("node", "input", "output", "value_info"):
        getattr(light.graph, name).extend(getattr(proto.graph, name))
    light.graph.name = proto.graph.name
    return light


def _is_permutation(positions: np.ndarray) -> bool:
    """Whether each of 0, 1, ... stands once in the array."""
    if positions.max() >= positions.size:
        return False
    there = np.zeros(positions.size, bool)
    there[positions.reshape(-1)] = True
    return bool(there.all())


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
