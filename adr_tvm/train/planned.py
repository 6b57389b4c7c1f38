"""From options to a controller: which layers may reuse, and the ladder of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.train.controller import FIXED, OFF, Controller, ControllerState
from adr_tvm.train.ladder import Cost, Ladder, climb, grid, listed
from adr_tvm.train.options import DEFAULT_BITS, DEFAULT_LENGTHS, FORWARD_BITS, FORWARD_LENGTHS, TrainOptions
from adr_tvm.train.profitability import training_cost
from adr_tvm.train.stage import SAMPLED, STRAIGHT_THROUGH, LayerReuse, Stage


def make_controller(
    candidates: Mapping[str, ConvGeometry],
    options: TrainOptions,
    total_steps: int,
    state: ControllerState | None = None,
    given: Stage | None = None,
) -> Controller:
    """The controller of a run.

    Args:
        candidates: shapes of the layers that may reuse, in network order.
        total_steps: of the whole run.
        state: of an earlier run, to go on from.
        given: what every layer does, by a plan; None: as the options say.

    Raises:
        UsageError: more than one layer would sample its input gradient.
    """
    deadline = None if options.last_stage_by is None else round(options.last_stage_by * total_steps)
    if given is None:
        ladders = {
            layer: ladder(geometry, options, first=index == 0)
            for index, (layer, geometry) in enumerate(candidates.items())
            if options.reuse != OFF and _allowed(layer, options)
        }
    else:
        ladders = {
            layer: listed([given[layer]], _cost(geometry, options, index == 0))
            for index, (layer, geometry) in enumerate(candidates.items())
            if given.get(layer) is not None
        }
    _check_sampled([layer for layer in list(candidates)[1:] if _samples(ladders.get(layer, ()))])
    return Controller(
        ladders,
        {layer: float(geometry.macs) for layer, geometry in candidates.items()},
        options.rule,
        options.per_layer,
        deadline,
        state,
    )


def ladder(geometry: ConvGeometry, options: TrainOptions, first: bool = False) -> Ladder:
    """The candidates of a layer; L is capped by what there is to cut. Empty where none is predicted to pay.

    Args:
        first: nothing before the layer is trained, so it needs no input gradient.
    """
    cost = _cost(geometry, options, first)
    if stages := options.listed_stages():
        return listed([None if each is None else _capped(each, geometry) for each in stages], cost)
    if options.input_gradient is None:
        forward = replace(options.base, input_gradient=STRAIGHT_THROUGH, forward_only=True)
        reuses = grid(forward, FORWARD_LENGTHS, FORWARD_BITS)
    else:
        reuses = grid(options.base, DEFAULT_LENGTHS, DEFAULT_BITS)
    return climb([_capped(each, geometry) for each in reuses], cost, options.finish == "dense")


def _samples(ladder: Ladder) -> bool:
    """Whether a layer samples its input gradient in some stage."""
    return any(each.reuse is not None and each.reuse.input_gradient == SAMPLED for each in ladder)


def _check_sampled(layers: list[str]) -> None:
    """All that lies before a layer with a sampled input gradient learns from these images alone.

    A second layer would sample from the sample, and scale it again.
    """
    if len(layers) > 1:
        raise UsageError(
            f"sampled input gradients are for one layer of a network, here {', '.join(layers)} would have them: "
            "name one with --only"
        )


def _cost(geometry: ConvGeometry, options: TrainOptions, first: bool) -> Cost:
    return lambda reuse: training_cost(geometry, reuse, options.batch, input_gradient=not first)


def _capped(reuse: LayerReuse, geometry: ConvGeometry) -> LayerReuse:
    setting = reuse.setting
    if setting.granularity == "row":
        return reuse
    return replace(reuse, setting=replace(setting, L=geometry.vector_length(setting)))


def _allowed(layer: str, options: TrainOptions) -> bool:
    if any(re.search(pattern, layer) for pattern in options.skip):
        return False
    return not options.only or any(re.search(pattern, layer) for pattern in options.only)


def strategy_text(options: TrainOptions, controller: Controller) -> str:
    """How many stages there are, in words."""
    if options.fine_tuning:
        count = len(controller.ladders)
        return f"fine-tuning under a plan: {count} layer{' reuses' if count == 1 else 's reuse'}"
    if options.reuse == OFF:
        return "no reuse"
    if not any(controller.ladders.values()):
        return f"{options.reuse}: no layer is predicted to be faster with reuse"
    if options.reuse == FIXED:
        return "fixed: one stage"
    return f"{options.reuse}: up to {max(map(len, controller.ladders.values()))} stages"
