"""The loss behind a network: ``main(x, ...)`` becomes ``main(x, labels, ...)``.

Softmax cross entropy, the mean over the batch; labels are int32 [B]. It returns (loss, what it returned before...), the
form that TVM's ``Gradient`` differentiates.
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm._tvm import static_shape
from adr_tvm.gradients.loss import cross_entropy
from adr_tvm.passes.extended import extended


@tvm.transform.module_pass(opt_level=0, name="AppendLoss")
class AppendLoss:
    """See the module; the first result of ``main`` must be logits, float32 [B, classes] with B fixed.

    Args:
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
    """

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        x, *others = mod["main"].params
        labels = relax.Var("labels", relax.TensorType([static_shape(x)[0]], "int32"))

        def append(builder: relax.BlockBuilder, results: list[relax.Expr]) -> relax.Expr:
            loss = builder.emit(cross_entropy(results[0], labels, self.label_smoothing))
            return relax.Tuple([loss, *results])

        return extended(mod, "main", [x, labels, *others], append)
