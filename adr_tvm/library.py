"""A compiled network: runs in this process, and can be written as a library and its weights."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from adr_tvm._tvm import with_functions_of
from adr_tvm.passes.weights import without_weights


class Library(relax.VMExecutable):
    """An executable that holds its weights, for ``relax.VirtualMachine``.

    Args:
        executable: what was compiled.
        lowered: the module it was compiled from, in the virtual machine's form.
    """

    def __init__(self, executable: relax.VMExecutable, lowered: tvm.IRModule) -> None:
        super().__init__(executable.mod)
        self._lowered = lowered

    def without_weights(self) -> tuple[relax.VMExecutable, np.ndarray]:
        """The same machine code, with entries that take the weights as one more argument, and the weights: uint8."""
        mod, weights = without_weights(self._lowered)
        return with_functions_of(self, mod), weights
