"""The options of a training run: the command line's and the library's are the same.

Nothing heavy is imported here: the command line reads the defaults for its help.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from adr_tvm.errors import UsageError
from adr_tvm.settings import GRANULARITIES, SCOPES, ReuseSetting
from adr_tvm.stream_table import DEFAULT_SLOTS, STREAMING
from adr_tvm.targets import find_target
from adr_tvm.train.controller import FIXED, OFF, STRATEGIES, STREAM
from adr_tvm.train.plateau import PlateauRule
from adr_tvm.train.stage import INPUT_GRADIENTS, LayerReuse

THIS_CPU = "cpu"
AMP = ("fp16", "bf16")
OPTIMIZERS = ("sgd", "adam", "adamw")
LR_SCHEDULES = ("constant", "cosine", "step", "one-cycle", "stable-decay")
HASHES = ("gaussian", "pca")
DEFAULT_LR = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3}
DEFAULT_LENGTHS, DEFAULT_BITS = (16, 8), (8, 10, 12)
DEFAULT_FIXED = "8x12"
FIXED_PLANES, REFIT_PLANES, LEARNED_PLANES = "fixed", "refit", "learned"
PLANE_MODES = (FIXED_PLANES, REFIT_PLANES, LEARNED_PLANES)

_NO_EFFECT_ON_CURVE = ("pin_memory", "resume", "threads", "checkpoint_every", "compile_ahead", "max_steps")
_STAGE = re.compile(r"(?:(?P<granularity>[a-z]+)/)?(?P<L>\d+)x(?P<H>\d+)(?P<more>(?::[a-z-]+)*)")
BACKWARD_ONLY = "backward-only"


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained.

    Attributes:
        target: where it trains: ``cpu`` or a CUDA target that this machine's GPU is of; None: this machine's processor.
        amp: ``fp16`` or ``bf16``: forward and backward in 16 bits, parameters in fp32; None: all in fp32.
        pin_memory: on a GPU, copy the next batch from page-locked memory while a step runs.
        init: ONNX file whose weights training starts with; None: those of the network.
        plan: folder or ``plan.json`` to fine-tune under (`adr_tvm.train.fine_tuning`); None: none.
        max_drop: find that plan, with up to this share of the accuracy lost before fine-tuning; None: do not.
        hash_planes: with a plan: ``fixed``, ``refit`` or ``learned``; None: learned.
        reuse: strategy, see `adr_tvm.train.controller`; with a plan it is ``fixed``.
        epochs: passes over the training data.
        batch: images of a step.
        optimizer: ``sgd`` (momentum, weight decay added to the gradient), ``adam`` or ``adamw``.
        lr: peak learning rate; None: 0.05 for sgd, 0.001 for the others.
        momentum, nesterov: of sgd.
        weight_decay: of all parameters, as in PyTorch.
        lr_schedule: how the learning rate falls over the run.
        warmup: epochs over which the learning rate rises from 0.
        label_smoothing: share of the target spread over all classes.
        augment: random crop and flip.
        padding: pixels a crop may reach past the image.
        stages: the stages one by one, as ``16x8,8x12:straight-through,16x8:backward-only,dense``; None: chosen by
            predicted cost.
        granularity, hash, scope: of all stages that do not say otherwise.
        input_gradient: of all stages; None: chosen, averaged before straight-through; with a plan straight-through.
        finish: what comes after the finest stage: ``reuse``, or ``dense`` as a last stage.
        per_layer: layers advance one at a time.
        window, improvement, smoothing: of the rule that ends a stage, see `adr_tvm.train.plateau`.
        last_stage_by: share of the run by which the last stage begins, whatever the loss does; None: never forced.
        refresh_planes: steps after which hash planes are fitted to the data again, or refined; 0: only when a stage
            begins.
        stream_slots: of ``adaptive+stream``: centroids of a segment that persist at most, the last used ones.
        measure: time each candidate and run a layer dense where it is not faster.
        skip, only: layers stay dense if a pattern is found in, not found in their name.
        compile_ahead: compile the next stage in the background.
        checkpoint_every: steps between checkpoints within an epoch; None: only at its end.
        max_steps: stop after so many steps in all; the schedule is that of the whole run.
        seed: everything random derives from it.
        threads: of the kernels; None: all physical cores.
        mean, std: normalisation per channel in units of value / 255; None: the data's own.
        resume: go on from the last checkpoint.

    Raises:
        UsageError: a value out of range, or options that contradict each other.
    """

    target: str | None = None
    amp: str | None = None
    pin_memory: bool = False
    init: str | None = None
    plan: str | None = None
    max_drop: float | None = None
    hash_planes: str | None = None
    reuse: str = OFF
    epochs: int = 20
    batch: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    lr_schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    augment: bool = False
    padding: int = 4
    stages: str | None = None
    granularity: str = "pixel"
    hash: str = "pca"
    scope: str = "batch"
    input_gradient: str | None = None
    finish: str = "reuse"
    per_layer: bool = False
    window: int = 200
    improvement: float = 0.02
    smoothing: float = 0.98
    last_stage_by: float | None = None
    refresh_planes: int = 100
    stream_slots: int = DEFAULT_SLOTS
    measure: bool = True
    skip: Sequence[str] = ()
    only: Sequence[str] = ()
    compile_ahead: bool = True
    checkpoint_every: int | None = None
    max_steps: int | None = None
    seed: int = 0
    threads: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_words()
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std go together")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise UsageError(f"--std is {list(self.std)}, expected more than 0")
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum > 0):
            raise UsageError("--nesterov is for --optimizer sgd with --momentum")
        self._check_place()
        self._check_streaming()
        self._check_fine_tuning()
        listed = self.listed_stages()
        if self.reuse == OFF and self.stages is not None:
            raise UsageError("--stages needs --reuse fixed, adaptive or adaptive+stream")
        if self.reuse == FIXED and len(listed) != 1:
            raise UsageError(f"--reuse fixed has one stage, --stages gives {len(listed)}: {self.stages}")

    @property
    def on_gpu(self) -> bool:
        """Whether the network trains on a GPU."""
        return self.target is not None and find_target(self.target).gpu is not None

    @property
    def fine_tuning(self) -> bool:
        """Whether the network trains under a plan."""
        return self.plan is not None or self.max_drop is not None

    @property
    def peak_lr(self) -> float:
        """The learning rate at its highest."""
        return DEFAULT_LR[self.optimizer] if self.lr is None else self.lr

    @property
    def rule(self) -> PlateauRule:
        """When a stage ends."""
        return PlateauRule(self.smoothing, self.improvement, self.window)

    @property
    def base(self) -> LayerReuse:
        """What stages have where they do not say otherwise."""
        return self._reuse(self.granularity, 1, 1, self.input_gradient or INPUT_GRADIENTS[0])

    def listed_stages(self) -> list[LayerReuse | None]:
        """The stages that the user lists (``fixed``: its one stage); empty where they are chosen.

        Raises:
            UsageError: one cannot be read.
        """
        text = self.stages if self.stages is not None or self.reuse != FIXED else DEFAULT_FIXED
        return [] if text is None else [self._parsed(part.strip()) for part in text.split(",")]

    def curve(self) -> dict[str, Any]:
        """The options that a run's curves depend on, JSON-ready: a resumed run must have the same."""
        content = {name: value for name, value in asdict(self).items() if name not in _NO_EFFECT_ON_CURVE}
        content["target"] = "cuda" if self.on_gpu else None  # which of its names it has does not matter
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}

    def _parsed(self, text: str) -> LayerReuse | None:
        if text == "dense":
            return None
        match = _STAGE.fullmatch(text)
        if match is None:
            raise UsageError(f"--stages: {text!r} is no stage, expected such as 16x8, segment/10x12:averaged or dense")
        granularity = match["granularity"] or self.granularity
        more = match["more"].split(":")[1:]
        gradients = [word for word in more if word != BACKWARD_ONLY] or [self.base.input_gradient]
        if len(gradients) > 1:
            raise UsageError(f"--stages: {text!r} names more than one input gradient: {', '.join(gradients)}")
        return self._reuse(granularity, int(match["L"]), int(match["H"]), gradients[0], BACKWARD_ONLY in more)

    def _reuse(self, granularity: str, L: int, H: int, gradient: str, backward_only: bool = False) -> LayerReuse:
        try:
            setting = ReuseSetting(granularity, L, H, self.hash, self.scope)  # type: ignore[arg-type]
            return LayerReuse(setting, gradient, self.reuse == STREAM, self.stream_slots, backward_only)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"--stages: {error}") from None

    def _check_place(self) -> None:
        entry = find_target(self.target or THIS_CPU)
        if entry.gpu is None and entry.name != THIS_CPU:
            raise UsageError(f"--target {entry.name} is another machine: training is for {THIS_CPU} and CUDA targets")
        reuse = f"--reuse {self.reuse}" if self.reuse != OFF else "--plan" if self.plan is not None else "--max-drop"
        reuses = self.reuse != OFF or self.fine_tuning
        if self.on_gpu and self.fine_tuning:
            raise UsageError(f"{reuse} cannot go with --target {self.target}: a plan is trained under on a processor")
        if self.on_gpu and self.reuse == STREAM:
            raise UsageError(
                f"{reuse} cannot go with --target {self.target}: clusters that persist have no kernels for CUDA"
            )
        if self.amp is not None and reuses:
            raise UsageError(f"{reuse} cannot go with --amp: reuse trains in fp32 only")
        if self.pin_memory and not self.on_gpu:
            raise UsageError("--pin-memory is for GPUs: it needs --target cuda")

    def _check_fine_tuning(self) -> None:
        if self.plan is not None and self.max_drop is not None:
            raise UsageError("--plan and --max-drop cannot go together: either gives the plan")
        if not self.fine_tuning:
            if self.hash_planes is not None:
                raise UsageError("--hash-planes needs --plan or --max-drop")
            return
        if self.reuse not in (OFF, FIXED):
            raise UsageError(f"--reuse {self.reuse} cannot go with a plan, which says how every layer reuses")
        decided = {"--stages": "stages", "--granularity": "granularity", "--hash": "hash", "--scope": "scope",
                   "--finish": "finish", "--per-layer": "per_layer", "--last-stage-by": "last_stage_by"}  # fmt: skip
        if self.plan is not None:
            decided |= {"--skip": "skip", "--only": "only"}
        given = [flag for flag, name in decided.items() if getattr(self, name) != _DEFAULTS[name]]
        if given:
            raise UsageError(f"{' and '.join(given)} cannot go with a plan, which says how every layer reuses")

    def _check_numbers(self) -> None:
        for flag, value, lowest, highest in (
            ("--max-drop", self.max_drop, 0, 1),
            ("--epochs", self.epochs, 1, 100_000),
            ("--batch", self.batch, 1, 1 << 20),
            ("--momentum", self.momentum, 0, 0.9999),
            ("--weight-decay", self.weight_decay, 0, 1),
            ("--warmup", self.warmup, 0, self.epochs),
            ("--label-smoothing", self.label_smoothing, 0, 0.9),
            ("--padding", self.padding, 0, 1024),
            ("--window", self.window, 1, 1 << 40),
            ("--improvement", self.improvement, 0, 0.99),
            ("--smoothing", self.smoothing, 0, 0.9999),
            ("--last-stage-by", self.last_stage_by, 0, 1),
            ("--refresh-planes", self.refresh_planes, 0, 1 << 40),
            ("--stream-slots", self.stream_slots, 1, 1 << 20),
            ("--checkpoint-every", self.checkpoint_every, 1, 1 << 40),
            ("--max-steps", self.max_steps, 1, 1 << 40),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--threads", self.threads, 1, 1024),
        ):
            if value is not None and not lowest <= value <= highest:
                raise UsageError(f"{flag} is {value}, expected {lowest} to {highest}")
        if not (self.peak_lr > 0 and math.isfinite(self.peak_lr)):
            raise UsageError(f"--lr is {self.lr}, expected more than 0")

    def _check_streaming(self) -> None:
        if self.reuse == STREAM and self.scope != "batch":
            raise UsageError(f"--reuse {STREAM} needs --scope batch: with {self.scope} clusters are of one image")
        if self.reuse == STREAM and self.granularity not in STREAMING:
            raise UsageError(f"--reuse {STREAM} needs --granularity {' or '.join(STREAMING)}, not {self.granularity}")

    def _check_words(self) -> None:
        for flag, value, allowed in (
            ("--amp", self.amp or AMP[0], AMP),
            ("--reuse", self.reuse, STRATEGIES),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--lr-schedule", self.lr_schedule, LR_SCHEDULES),
            ("--granularity", self.granularity, GRANULARITIES),
            ("--hash", self.hash, HASHES),
            ("--scope", self.scope, SCOPES),
            ("--input-gradient", self.input_gradient or INPUT_GRADIENTS[0], INPUT_GRADIENTS),
            ("--finish", self.finish, ("reuse", "dense")),
            ("--hash-planes", self.hash_planes or LEARNED_PLANES, PLANE_MODES),
        ):
            if value not in allowed:
                raise UsageError(f"{flag} is {value!r}, expected one of {', '.join(allowed)}")
        for flag, patterns in (("--skip", self.skip), ("--only", self.only)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as error:
                    raise UsageError(f"{flag} {pattern!r} is not a regular expression: {error}") from None


_DEFAULTS = {field.name: field.default for field in fields(TrainOptions)}
