"""The line that shows how training goes: loss, accuracy, images/s, and {L, H} and r_c of each reusing layer."""

from __future__ import annotations

from collections.abc import Mapping

from adr_tvm.report.formats import percent, significant
from adr_tvm.train.stage import Stage

MOST_LAYERS = 3


def live_note(
    loss: float,
    accuracy: float,
    images_per_second: float,
    stage: Stage,
    ratios: Mapping[str, float],
    streamed: Mapping[str, float],
    scale: float | None = None,
) -> str:
    """``loss 1.23, accuracy 56 %, 890 images/s, conv2 L=16 H=8 r_c 1.3 %``.

    Where many layers reuse, the first few are named, and the mean r_c of all is given. ``streamed`` is the share of
    clusters taken over from earlier batches, of the layers whose clusters persist: ``, 97 % taken over``. ``scale`` is
    that of the loss, where it is scaled: ``, loss scale 65536``.
    """
    words = [f"loss {loss:.3f}", f"accuracy {100 * accuracy:.1f} %", f"{significant(images_per_second)} images/s"]
    if scale is not None:
        words.append(f"loss scale {scale:g}")
    reusing = {layer: reuse for layer, reuse in stage.items() if reuse is not None}
    for layer, reuse in list(reusing.items())[:MOST_LAYERS]:
        ratio = f" r_c {percent(ratios[layer])}" if layer in ratios else ""
        taken = f", {percent(streamed[layer])} taken over" if layer in streamed else ""
        words.append(f"{layer} L={reuse.setting.L} H={reuse.setting.H}{ratio}{taken}")
    if len(reusing) > MOST_LAYERS and ratios:
        words.append(f"{len(reusing) - MOST_LAYERS} more, mean r_c {percent(sum(ratios.values()) / len(ratios))}")
    return ", ".join(words)


class Smoothed:
    """A running mean that forgets, for what is shown and not decided on."""

    def __init__(self, keep: float = 0.95) -> None:
        self._keep, self._total, self._weight = keep, 0.0, 0.0

    def add(self, value: float) -> float:
        """Take in a value; returns the mean."""
        self._total = self._keep * self._total + (1 - self._keep) * value
        self._weight = self._keep * self._weight + (1 - self._keep)
        return self._total / self._weight
