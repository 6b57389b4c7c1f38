"""Reverse-mode differentiation by chosen parameters: TVM's ``Gradient`` on ``main``, whose first result is the loss."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax


@tvm.transform.module_pass(opt_level=0, name="Differentiate")
class Differentiate:
    """Add ``main_adjoint``, which returns (what main returns, gradients).

    Args:
        parameters: names of parameters of ``main``.
    """

    def __init__(self, parameters: Sequence[str]):
        self.parameters = tuple(parameters)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Differentiate.

        Raises:
            KeyError: ``main`` has no parameter of a name.
        """
        variables = {var.name: var for var in mod["main"].params}
        by = [variables[name] for name in self.parameters]
        differentiated = relax.transform.Gradient("main", require_grads=by, target_index=0)(mod)
        return relax.transform.DeadCodeElimination()(differentiated)
