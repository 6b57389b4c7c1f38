"""The candidates of a layer in the order in which training climbs them: each costs more and is finer than the last.

Of a grid of lengths and bits the ladder is the chain that starts at the cheapest candidate and goes on
to the cheapest that is finer in the order of the papers: L no longer, H no smaller, the input gradient no coarser.
Stages that the user lists are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adr_tvm.train.stage import INPUT_GRADIENTS, LayerReuse

Cost = Callable[[LayerReuse], float]


@dataclass(frozen=True)
class Candidate:
    """One step of a ladder.

    Attributes:
        reuse: what the layer does; None is dense.
        cost: predicted time over the dense layer's.
    """

    reuse: LayerReuse | None
    cost: float


DENSE = Candidate(None, 1.0)
Ladder = tuple[Candidate, ...]


def grid(base: LayerReuse, lengths: Sequence[int], bits: Sequence[int]) -> list[LayerReuse]:
    """All combinations; what they do not name is as in ``base``."""
    return [replace(base, setting=replace(base.setting, L=L, H=H)) for L in lengths for H in bits]


def climb(reuses: Sequence[LayerReuse], cost: Cost, dense_last: bool) -> Ladder:
    """The chain from the cheapest to the finest; those that are not predicted to be faster than dense are left out.

    Args:
        dense_last: end with the dense layer.
    """
    open_ = sorted((Candidate(reuse, cost(reuse)) for reuse in dict.fromkeys(reuses)), key=lambda c: c.cost)
    open_ = [candidate for candidate in open_ if candidate.cost < 1.0]
    chain: list[Candidate] = []
    for candidate in open_:
        if not chain or _finer(candidate.reuse, chain[-1].reuse):
            chain.append(candidate)
    return tuple(chain) + ((DENSE,) if dense_last and chain else ())


def listed(reuses: Sequence[LayerReuse | None], cost: Cost) -> Ladder:
    """The stages as the user gave them; neighbours that are one and the same (L is capped by the layer) stay two."""
    return tuple(DENSE if reuse is None else Candidate(reuse, cost(reuse)) for reuse in reuses)


def _finer(new: LayerReuse | None, old: LayerReuse | None) -> bool:
    if new is None or old is None:
        return new is None
    rank = INPUT_GRADIENTS.index
    if new.backward_only != old.backward_only:
        return new.backward_only
    if new.forward_only != old.forward_only:
        return new.forward_only
    return (
        new.setting.L <= old.setting.L
        and new.setting.H >= old.setting.H
        and rank(new.input_gradient) >= rank(old.input_gradient)
    )
