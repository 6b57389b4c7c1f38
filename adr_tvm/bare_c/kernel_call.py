"""A call of a C kernel: what the driver is made of.

Every kernel has the form ``kernel(&parameters, inputs..., constants..., output[, scratch][, counts])``; parameters are
a struct of its own, with everything that follows from shapes and attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class KernelCall:
    """How an operator runs.

    Attributes:
        function: the kernel; empty for a view, which costs nothing where it needs no copy.
        sources: files of ``kernels/`` that hold it and what it calls.
        struct: type of its parameters.
        parameters: fields of the struct; a mapping is a struct in it, a sequence an array.
        inputs: tensors that it reads, in its order; None: there is none (NULL).
        constants: arrays by part, packed as the kernel wants them, in its order; None: there is none (NULL).
        scratch: bytes of memory that it needs while it runs; 0: it has no such argument.
        counts: whether it takes a pointer to two int32: clusters, and 1 if it reused.
        in_place: inputs that it may write its output over.
    """

    function: str
    sources: tuple[str, ...] = ()
    struct: str = ""
    parameters: Mapping[str, Any] | None = None
    inputs: tuple[str | None, ...] = ()
    constants: Mapping[str, np.ndarray | None] | None = None
    scratch: int = 0
    counts: bool = False
    in_place: tuple[str, ...] = ()
