"""The adaptive controller: which stage training is in, decided by losses alone. Pure: it compiles and times nothing.

Strategies (ADR, ICDE 2019, section 5; the papers' three, and none):

    off              every layer dense
    fixed            one candidate per layer for the whole run
    adaptive         each layer has a ladder of candidates, cheapest first; the next when the loss stops improving
    adaptive+stream  the same with ids and centroids that persist over batches (the papers' cluster reuse)

Rule: training starts at the first candidate of every ladder. A plateau of the smoothed loss (`adr_tvm.train.plateau`)
moves on, either all layers at once (each stands at min(level, end of its ladder)) or, ``per_layer``, the one whose next
candidate adds the least predicted time, ties by network order. It never goes back. ``deadline`` is the step by which
the last stage begins, whatever the loss does: a run that ends on coarse stages ends less accurate.

A candidate that was measured not to be faster than the dense layer is dropped: together, the layer runs dense while the
others stand at that level, and a level at which all do is left at once; per layer, its next candidate takes the place.
What was measured is part of the state, so that a resumed run does not measure again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adr_tvm.train.ladder import Candidate, Ladder
from adr_tvm.train.plateau import PlateauRule, PlateauState, observe
from adr_tvm.train.stage import LayerReuse

OFF, FIXED, ADAPTIVE, STREAM = "off", "fixed", "adaptive", "adaptive+stream"
STRATEGIES = (OFF, FIXED, ADAPTIVE, STREAM)

KEEP_IF_FASTER = 0.97
"""Reuse is kept if its measured time is below this share of dense time: less is within the noise of timing."""


@dataclass(frozen=True)
class LayerTimes:
    """Measured seconds of a training step of one layer, dense and with reuse, taken in turns."""

    dense: float
    reuse: float


@dataclass
class ControllerState:
    """All that decisions depend on; JSON-ready by ``asdict``.

    Attributes:
        step: losses seen.
        positions: of each layer on its ladder.
        plateau: of the current stage.
        times: measured [dense, reuse] seconds by layer and position (as text: JSON has no other keys).
        switches: (step, positions) of every stage begun.
    """

    step: int = 0
    positions: dict[str, int] = field(default_factory=dict)
    plateau: PlateauState = field(default_factory=PlateauState)
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    switches: list[tuple[int, dict[str, int]]] = field(default_factory=list)


class Controller:
    """Walks the layers' ladders.

    Args:
        ladders: of the layers that may reuse, in network order; an empty ladder is dense for good.
        work: dense multiply-adds of each layer, for the order of ``per_layer``.
        rule: when a stage ends.
        per_layer: one layer moves at a time.
        deadline: step by which every layer stands at the end of its ladder; None: only the loss decides.
        state: of an earlier run, to go on from.
    """

    def __init__(
        self,
        ladders: Mapping[str, Ladder],
        work: Mapping[str, float] | None = None,
        rule: PlateauRule | None = None,
        per_layer: bool = False,
        deadline: int | None = None,
        state: ControllerState | None = None,
    ) -> None:
        self.ladders = dict(ladders)
        self._work = dict(work or {})
        self._rule = rule or PlateauRule()
        self._per_layer = per_layer
        self._deadline = deadline
        self.state = state or ControllerState()
        if state is None:
            self.state.positions = dict.fromkeys(self.ladders, 0)
            self._begin_stage()
        elif state.positions.keys() != self.ladders.keys():
            raise ValueError(f"the state is of layers {sorted(state.positions)}, not of {sorted(self.ladders)}")

    @property
    def stage(self) -> dict[str, LayerReuse | None]:
        """What every layer does now."""
        return self._stage(self.state.positions)

    @property
    def level(self) -> int:
        """Stages begun before this one."""
        return len(self.state.switches) - 1

    @property
    def finished(self) -> bool:
        """Whether this stage is the last."""
        return self._next_positions() is None

    def upcoming(self) -> dict[str, LayerReuse | None] | None:
        """The stage after this one, should nothing be dropped; None after the last."""
        positions = self._next_positions()
        return None if positions is None else self._stage(positions)

    def observe(self, loss: float | None) -> bool:
        """Take in the loss of a step; returns whether a new stage begins with the next step.

        None is the loss of a step that was skipped without one: it counts as a step and says nothing else.

        Raises:
            ValueError: the loss is not finite.
        """
        self.state.step += 1
        ended = loss is not None and observe(self.state.plateau, loss, self._rule)
        if self.finished:
            return False
        if self._deadline is not None and self.state.step >= self._deadline:
            self.state.positions = {layer: max(0, len(ladder) - 1) for layer, ladder in self.ladders.items()}
        elif ended:
            self._advance()
        else:
            return False
        self._begin_stage()
        return True

    def unmeasured(self) -> list[str]:
        """Layers that reuse in this stage in a way that was not measured yet."""
        return [layer for layer, reuse in self.stage.items() if reuse is not None and self._times(layer) is None]

    def record(self, times: Mapping[str, LayerTimes]) -> list[str]:
        """Take in measured times of this stage's candidates, and drop those that do not pay.

        Returns:
            The layers whose candidate was dropped. The stage is another then: ask ``unmeasured`` again.
        """
        for layer, each in times.items():
            position = str(self.state.positions[layer])
            self.state.times.setdefault(layer, {})[position] = [each.dense, each.reuse]
        dropped = [layer for layer in times if self._dropped(layer, self.state.positions[layer])]
        if self._settle():
            self._begin_stage()
        return dropped

    def _begin_stage(self) -> None:
        self._settle()
        self.state.plateau = PlateauState()
        switches = self.state.switches
        if switches and switches[-1][0] == self.state.step:
            switches.pop()  # no step was taken in it
        switches.append((self.state.step, dict(self.state.positions)))

    def _settle(self) -> bool:
        """Leave positions at which nothing reuses that was meant to; returns whether any was left."""
        moved = False
        while self._stuck():
            self._advance(only=self._stuck()[0] if self._per_layer else None)
            moved = True
        return moved

    def _stuck(self) -> list[str]:
        """Layers at a dropped candidate with another after it; together: only if every layer is at a dropped one."""
        positions = self.state.positions
        at_dropped = [layer for layer in self.ladders if self._dropped(layer, positions[layer])]
        if not self._per_layer and (len(at_dropped) < sum(map(bool, self.ladders.values()))):
            return []
        return [layer for layer in at_dropped if positions[layer] + 1 < len(self.ladders[layer])]

    def _advance(self, only: str | None = None) -> None:
        positions = self._next_positions(only)
        assert positions is not None, "advanced past the last stage"
        self.state.positions = positions

    def _next_positions(self, only: str | None = None) -> dict[str, int] | None:
        positions = self.state.positions
        movable = [layer for layer, ladder in self.ladders.items() if positions[layer] + 1 < len(ladder)]
        if not movable:
            return None
        if only is not None:
            movable = [only]
        elif self._per_layer:
            movable = [min(movable, key=self._added_time)]
        return {layer: position + (layer in movable) for layer, position in positions.items()}

    def _added_time(self, layer: str) -> float:
        here, after = (self._candidate(layer, self.state.positions[layer] + i).cost for i in (0, 1))
        return (after - here) * self._work.get(layer, 1.0)

    def _stage(self, positions: Mapping[str, int]) -> dict[str, LayerReuse | None]:
        return {
            layer: None
            if not self.ladders[layer] or self._dropped(layer, position)
            else self._candidate(layer, position).reuse
            for layer, position in positions.items()
        }

    def _candidate(self, layer: str, position: int) -> Candidate:
        return self.ladders[layer][position]

    def _times(self, layer: str) -> list[float] | None:
        return self.state.times.get(layer, {}).get(str(self.state.positions[layer]))

    def _dropped(self, layer: str, position: int) -> bool:
        times = self.state.times.get(layer, {}).get(str(position))
        return times is not None and not times[1] < KEEP_IF_FASTER * times[0]
