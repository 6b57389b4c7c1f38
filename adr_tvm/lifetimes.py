"""What is alive from one call to another, and offsets in one block of memory for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Lifetime:
    """A dataclass with this base is alive from call ``first`` up to call ``last``, both included."""

    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are alive at some time."""
        return self.first <= other.last and other.first <= self.last


def lowest_offsets(lifetimes: Sequence[Lifetime], sizes: Mapping[int, int], order: Sequence[int]) -> dict[int, int]:
    """Offsets by index, given out one after the other: the lowest where nothing lies that is alive at the same time.

    Args:
        sizes: bytes by index.
        order: of the indices.
    """
    offsets: dict[int, int] = {}
    for index in order:
        offset = 0
        taken = ((offsets[i], offsets[i] + sizes[i]) for i in offsets if lifetimes[i].overlaps(lifetimes[index]))
        for start, end in sorted(taken):
            if offset + sizes[index] <= start:
                break
            offset = max(offset, end)
        offsets[index] = offset
    return offsets
