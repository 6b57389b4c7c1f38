"""Converters for ONNX operators that TVM's importer lacks, gets wrong or makes slow, one per file."""

from adr_tvm.converters.clip import Clip
from adr_tvm.converters.constant_of_shape import ConstantOfShape
from adr_tvm.converters.dropout import Dropout
from adr_tvm.converters.expand import Expand
from adr_tvm.converters.instance_normalization import InstanceNormalization
from adr_tvm.converters.resize import Resize
from adr_tvm.converters.slice import Slice
from adr_tvm.converters.split import Split
from adr_tvm.converters.sum import Sum
from adr_tvm.converters.upsample import Upsample

CONVERTERS = {
    converter.__name__: converter
    for converter in (
        *(Clip, ConstantOfShape, Dropout, Expand, InstanceNormalization),
        *(Resize, Slice, Split, Sum, Upsample),
    )
}
"""Converter classes by ONNX operator; they replace TVM's."""
