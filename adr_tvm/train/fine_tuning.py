"""Fine-tuning under a reuse plan: the layers that the plan reuses do so in every step, in its settings.

The weights learn to do with centroids what they did with vectors, so a plan that is too lossy for a trained network
may serve it afterwards. (TREC, NeurIPS 2022, trains with the reuse that it infers with for the same reason.)

- Lossless layers train dense, which is the same. A guard (``max_clusters``) is left out of training, since units that
  run dense have no gradient; ``gain`` has none either and is refused.
- Planes start as the plan's. Then they stay (``fixed``), are fitted anew to what the layers see (``refit``) or refined
  (``learned``, `adr_tvm.train.plane_learning`) every so many steps.
- Accuracy is that of inference with the plan: in its scope, with guards and product tables as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from adr_tvm import ops
from adr_tvm.errors import ModelError
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.passes.reuse_in_training import hash_shapes
from adr_tvm.plan import LayerPlan, ReusePlan, installed_tvm_version
from adr_tvm.progress import get_log
from adr_tvm.train.compiled_engine import CompiledEngine
from adr_tvm.train.evaluation import Evaluator
from adr_tvm.train.options import FIXED_PLANES, LEARNED_PLANES, REFIT_PLANES
from adr_tvm.train.stage import STRAIGHT_THROUGH, LayerReuse, Stage
from adr_tvm.train.state import TrainingState


class TunedEngine(CompiledEngine):
    """A compiled network that trains under a plan.

    Args:
        plan: which layers reuse, and how; its model is not looked at.
        hash_planes: one of ``options.PLANE_MODES``; None: learned.
        input_gradient: of the reusing layers; None: straight-through, the more accurate one.
        compiled: as ``CompiledEngine``.

    Attributes:
        stage: what every layer does in training.

    Raises:
        ModelError: the network lacks a layer that the plan reuses, or cannot train it in its setting.
    """

    def __init__(self, plan: ReusePlan, hash_planes: str | None, input_gradient: str | None, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.plan, self.hash_planes = plan, hash_planes or LEARNED_PLANES
        gradient = input_gradient or STRAIGHT_THROUGH
        self.stage: dict[str, LayerReuse | None] = dict.fromkeys(self.candidates)
        self._inferred: dict[str, LayerReuse] = {}
        for layer, setting in plan.reused.items():
            if setting.lossless:
                get_log().info("%s: its reuse is lossless, so it trains dense", layer)
                continue
            self._check_layer(layer)
            self.stage[layer] = LayerReuse(replace(setting, max_clusters=None), gradient)
            self._inferred[layer] = LayerReuse(setting)
        if not self._inferred:
            get_log().warning("the plan has no layer whose reuse loses anything: everything trains dense")

    def initial_state(self) -> TrainingState:
        """The state before the first step, with the plan's planes."""
        state = super().initial_state()
        for layer in self._hashed:
            given = self.plan.planes[layer]
            planes = np.ascontiguousarray(given.planes)
            state.planes[layer] = HashPlanes(
                planes, np.ascontiguousarray(given.thresholds), np.zeros(planes.shape[:2], np.float32)
            )
        return state

    def make_planes(self, state: TrainingState, stage: Stage, x: np.ndarray, seed: int) -> None:
        """Fit or refine planes by what the plan's layers see on a batch; before the first step they stay."""
        hashed = {layer: self._inferred[layer] for layer in self._hashed}
        if state.count == 0 or not hashed or self.hash_planes == FIXED_PLANES:
            return
        if self.hash_planes == REFIT_PLANES:
            self._observer().fit(state, x, hashed, seed)
        else:
            self._observer().learn(state, x, hashed, seed)

    def evaluator(self, batch: int) -> Evaluator:
        """The network as it infers with the plan."""
        return Evaluator(self.network, batch, self._inferred)

    def dense_evaluator(self, batch: int) -> Evaluator:
        """The network as it infers without reuse."""
        return Evaluator(self.network, batch)

    def tuned_plan(self, state: Any, sha256: str) -> ReusePlan:
        """The plan for the trained network.

        Args:
            state: a ``TrainingState`` with its planes.
            sha256: of the trained network's file.
        """
        learned = self.hash_planes == LEARNED_PLANES and state.count > 0
        return replace(
            self.plan,
            model_sha256=sha256,
            layers={name: self._tuned(layer, learned) for name, layer in self.plan.layers.items()},
            planes={**self.plan.planes, **{layer: state.planes[layer] for layer in self._hashed}},
            tvm_version=installed_tvm_version(),
        )

    def _tuned(self, layer: LayerPlan, learned: bool) -> LayerPlan:
        if layer.setting is None or layer.layer not in self._hashed or not learned:
            return layer
        return replace(layer, setting=replace(layer.setting, hash="learned"))

    @property
    def _hashed(self) -> list[str]:
        return [layer for layer, reuse in self._inferred.items() if reuse.setting.hash != "exact"]

    def _check_layer(self, layer: str) -> None:
        setting, geometry = self.plan.reused[layer], self.candidates.get(layer)
        if geometry is None:
            reason = next((each.reason for each in self.network.layers if each.layer == layer), None)
            why = f"cannot reuse in training: {reason}" if reason else "is not one of the network's that can be trained"
            raise ModelError(f"the plan reuses layer {layer!r}, which {why}; those are {', '.join(self.candidates)}")
        try:
            ops.check_trainable(layer, replace(setting, max_clusters=None), STRAIGHT_THROUGH)
        except ValueError as error:
            raise ModelError(
                f"the network cannot be trained under the plan: {error}; change that in plan.json"
            ) from None
        if setting.hash == "learned" and self.hash_planes == REFIT_PLANES:
            raise ModelError(
                f"the planes of layer {layer!r} were learned, there is no family to refit: --hash-planes learned"
            )
        if setting.hash != "exact":
            found = self.plan.planes[layer]
            expected = hash_shapes(geometry, setting)
            if (found.planes.shape, found.thresholds.shape) != expected:
                raise ModelError(
                    f"the planes of layer {layer!r} are {found.planes.shape}, the network needs {expected[0]}"
                )
