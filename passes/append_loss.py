"""The loss behind a network: ``main(x, ...)`` becomes ``main(x, labels, ...)``.

Softmax cross entropy, the mean over the batch; labels are int32 [B]. It returns (loss, what it returned before...),
the form that TVM's ``Gradient`` differentiates. With a scaled loss it takes a factor too, ``main(x, labels, scale,
...)``, float32 [], and returns (scale loss, loss, ...): so small gradients stay within what 16 bits hold.
"""

from __future__ import annotations

import tvm
from tvm import relax

from adr_tvm._tvm import static_shape
from adr_tvm.gradients.loss import cross_entropy
from adr_tvm.passes.extended import extended

SCALE = "scale"


@tvm.transform.module_pass(opt_level=0, name="AppendLoss")
class AppendLoss:
    """See the module; the first result of ``main`` must be logits, float32 [B, classes] with B fixed.

    Args:
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        scaled: whether the loss is scaled.
    """

    def __init__(self, label_smoothing: float = 0.0, scaled: bool = False):
        self.label_smoothing, self.scaled = label_smoothing, scaled

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite ``main``."""
        x, *others = mod["main"].params
        labels = relax.Var("labels", relax.TensorType([static_shape(x)[0]], "int32"))
        scale = relax.Var(SCALE, relax.TensorType([], "float32"))

        def append(builder: relax.BlockBuilder, results: list[relax.Expr]) -> relax.Expr:
            loss = builder.emit(cross_entropy(results[0], labels, self.label_smoothing))
            scaled = [builder.emit(relax.op.multiply(loss, scale))] if self.scaled else []
            return relax.Tuple([*scaled, loss, *results])

        return extended(mod, "main", [x, labels, *([scale] if self.scaled else []), *others], append)
