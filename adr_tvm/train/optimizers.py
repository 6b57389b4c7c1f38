"""Optimizers: what they keep for each parameter, and the kernel that updates parameter and state from the gradient.

The formulas are torch's (``torch.optim`` of the same name), see ``schedules/optimizer_update.py``. Learning rate and
step are inputs of the kernel, so that they change without compiling anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adr_tvm.errors import UsageError

if TYPE_CHECKING:
    from tvm import tirx


class Optimizer(Protocol):
    """How parameters are updated."""

    @property
    def slots(self) -> tuple[str, ...]:
        """What is kept for each parameter: tensors of its shape, 0 at first."""

    def kernel(self, size: int, gpu: bool = False) -> tirx.PrimFunc:
        """PrimFunc of (parameter, slots in order, gradient: float32 [size]; control: float32 [4]).

        It changes the parameter and the slots; ``gpu``: one for CUDA. Control: ``schedules/optimizer_update.py``.
        """


def _check(name: str, value: float, below: float) -> None:
    if not 0 <= value < below:
        raise UsageError(f"{name} is {value}, expected at least 0 and less than {below:g}")


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent.

    Attributes:
        momentum: share of the last update that joins the next.
        nesterov: look ahead by the momentum; needs one.
        weight_decay: share of the parameter that is added to its gradient.

    Raises:
        UsageError: a value out of range.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("momentum", self.momentum, 1)
        _check("weight decay", self.weight_decay, float("inf"))
        if self.nesterov and self.momentum == 0:
            raise UsageError("nesterov needs a momentum")

    @property
    def slots(self) -> tuple[str, ...]:
        """See ``Optimizer``."""
        return ("momentum",) if self.momentum else ()

    def kernel(self, size: int, gpu: bool = False) -> tirx.PrimFunc:
        """See ``Optimizer``."""
        from adr_tvm.schedules import optimizer_update
        from adr_tvm.schedules.cuda import optimizer_update as cuda_update

        make = (cuda_update if gpu else optimizer_update).sgd_update
        return make(size, self.momentum, self.nesterov, self.weight_decay)


@dataclass(frozen=True)
class Adam:
    """Adam; weight decay is added to the gradient.

    Attributes:
        beta1, beta2: shares of the running means of gradients and their squares that stay.
        epsilon: added to the root of the latter.
        weight_decay: share of the parameter that is added to its gradient.

    Raises:
        UsageError: a value out of range.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check("beta1", self.beta1, 1)
        _check("beta2", self.beta2, 1)
        _check("epsilon", self.epsilon, float("inf"))
        _check("weight decay", self.weight_decay, float("inf"))

    @property
    def slots(self) -> tuple[str, ...]:
        """See ``Optimizer``."""
        return ("mean", "square")

    def kernel(self, size: int, gpu: bool = False) -> tirx.PrimFunc:
        """See ``Optimizer``."""
        return self._kernel(size, gpu, decoupled=False)

    def _kernel(self, size: int, gpu: bool, decoupled: bool) -> tirx.PrimFunc:
        from adr_tvm.schedules import optimizer_update
        from adr_tvm.schedules.cuda import optimizer_update as cuda_update

        make = (cuda_update if gpu else optimizer_update).adam_update
        return make(size, self.beta1, self.beta2, self.epsilon, self.weight_decay, decoupled)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay shrinks the parameter itself.

    Attributes:
        weight_decay: share of the parameter, times the learning rate, that a step takes away.
    """

    weight_decay: float = 1e-2

    def kernel(self, size: int, gpu: bool = False) -> tirx.PrimFunc:
        """See ``Optimizer``."""
        return self._kernel(size, gpu, decoupled=True)
