"""ONNX networks in PyTorch, operator by operator: what training is compared with."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F


class TorchNetwork(torch.nn.Module):
    """Runs a model's nodes; its float initializers are parameters, by name (dots become double underscores)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.graph = model.graph
        for initializer in model.graph.initializer:
            array = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            if array.ndim == 4:
                array = array.contiguous(memory_format=torch.channels_last)
            if array.is_floating_point():
                self.register_parameter(_name(initializer.name), torch.nn.Parameter(array))
            else:
                self.register_buffer(_name(initializer.name), array)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters by initializer name."""
        names = {_name(i.name): i.name for i in self.graph.initializer}
        return {names[name]: value.detach().numpy() for name, value in self.named_parameters()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The model's first output."""
        values = {self.graph.input[0].name: x}
        values |= {i.name: getattr(self, _name(i.name)) for i in self.graph.initializer}
        for node in self.graph.node:
            inputs = [values[name] if name else None for name in node.input]
            attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = _OPERATORS[node.op_type](self, inputs, attrs)
        return values[self.graph.output[0].name]


def _name(name: str) -> str:
    return name.replace(".", "__").replace("/", "__").replace("::", "__")


def _conv(net, t, a):
    pads = a.get("pads", [0, 0, 0, 0])
    x = F.pad(t[0], (pads[1], pads[3], pads[0], pads[2]))
    bias = t[2] if len(t) > 2 else None
    return F.conv2d(x, t[1], bias, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1))


def _pool(net, t, a):
    pads = a.get("pads", [0, 0, 0, 0])
    x = F.pad(t[0], (pads[1], pads[3], pads[0], pads[2]), value=-torch.inf)
    return F.max_pool2d(x, a["kernel_shape"], a["strides"])


def _lrn(net, t, a):
    return F.local_response_norm(t[0], a["size"], a["alpha"], a["beta"], a["bias"])


def _gemm(net, t, a):
    weight = t[1] if a.get("transB") else t[1].T
    return F.linear(t[0], weight, t[2] if len(t) > 2 else None)


def _batch_norm(net, t, a):
    """In training the running statistics, which no gradient reaches, are updated in place."""
    momentum = 1 - a.get("momentum", 0.9)
    return F.batch_norm(t[0], t[3].data, t[4].data, t[1], t[2], net.training, momentum, a.get("epsilon", 1e-5))


def _average_pool(net, t, a):
    pads = a.get("pads", [0, 0, 0, 0])
    return F.avg_pool2d(
        t[0], a["kernel_shape"], a["strides"], pads[:2], count_include_pad=bool(a.get("count_include_pad"))
    )


def _dropout(net, t, a):
    return F.dropout(t[0], float(t[1].detach()) if len(t) > 1 else a.get("ratio", 0.5), net.training)


_OPERATORS = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _average_pool,
    "Dropout": _dropout,
    "LRN": _lrn,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "Relu": lambda net, t, a: F.relu(t[0]),
    "Flatten": lambda net, t, a: t[0].flatten(1),
    "Add": lambda net, t, a: t[0] + t[1],
    "Concat": lambda net, t, a: torch.cat(t, a["axis"]),
    "GlobalAveragePool": lambda net, t, a: t[0].mean((2, 3), keepdim=True),
}
