"""Converters for ONNX operators that TVM's importer lacks, gets wrong or makes slow, one per file."""

from adr_tvm.frontend.converters.clip import Clip
from adr_tvm.frontend.converters.constant_of_shape import ConstantOfShape
from adr_tvm.frontend.converters.dropout import Dropout, TrainingDropout
from adr_tvm.frontend.converters.expand import Expand
from adr_tvm.frontend.converters.instance_normalization import InstanceNormalization
from adr_tvm.frontend.converters.pad import Pad
from adr_tvm.frontend.converters.resize import Resize
from adr_tvm.frontend.converters.slice import Slice
from adr_tvm.frontend.converters.split import Split
from adr_tvm.frontend.converters.sum import Sum
from adr_tvm.frontend.converters.upsample import Upsample

CONVERTERS = {
    converter.__name__: converter
    for converter in (
        *(Clip, ConstantOfShape, Dropout, Expand, InstanceNormalization),
        *(Pad, Resize, Slice, Split, Sum, Upsample),
    )
}
"""Converter classes by ONNX operator; they replace TVM's."""

TRAINING_CONVERTERS = {**CONVERTERS, "Dropout": TrainingDropout}
"""The same for a network that will be trained."""
