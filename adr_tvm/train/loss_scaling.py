"""Dynamic loss scaling for gradients in fp16: what the loss is multiplied by, decided by overflows alone.

Gradients below 2^-24 are 0 in fp16, and above 65504 infinite. So the loss is multiplied by a scale S, gradients with
it, and what reaches the parameters is divided by S again, in fp32. Rule: S starts high; a step with a gradient that is
NaN or Inf is skipped, which changes nothing, and S is halved; after ``grow_after`` good steps in a row S is doubled. S
is a power of two, so that scaling rounds nothing. (Micikevicius et al., "Mixed Precision Training", ICLR 2018, 3.2.)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScalingRule:
    """The constants of the rule, described above; powers of two, but for ``grow_after``, which is in steps.

    At ``least`` an overflow is not one of scaling any more: the network has diverged.
    """

    start: float = 65536.0
    grow_after: int = 2000
    least: float = 1.0
    most: float = 2.0**24

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.start <= self.most:
            raise ValueError(f"scales from {self.least} over {self.start} to {self.most} do not ascend")
        if self.grow_after < 1:
            raise ValueError(f"grow_after is {self.grow_after}, expected at least 1")


@dataclass
class LossScaling:
    """What the rule remembers.

    Attributes:
        rule: its constants.
        scale: S of the next step.
        good: steps in a row since S last changed.
        skipped: steps in all that changed nothing.
    """

    rule: ScalingRule
    scale: float
    good: int = 0
    skipped: int = 0

    @classmethod
    def begin(cls, rule: ScalingRule | None = None) -> LossScaling:
        """Before the first step."""
        rule = rule or ScalingRule()
        return cls(rule, rule.start)

    def observe(self, finite: bool) -> None:
        """Take in whether all gradients of a step were finite; if not, it was skipped."""
        rule = self.rule
        if not finite:
            self.scale, self.good, self.skipped = max(rule.least, self.scale / 2), 0, self.skipped + 1
            return
        self.good += 1
        if self.good >= rule.grow_after:
            self.scale, self.good = min(rule.most, self.scale * 2), 0
