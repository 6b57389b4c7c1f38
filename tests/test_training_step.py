"""The compiled training step against PyTorch: same weights, same batches, same updates."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from adr_tvm._tvm import cpu_target
from adr_tvm.models.cifarnet import build_cifarnet
from adr_tvm.train.evaluation import Evaluator
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.state import TrainingState
from adr_tvm.train.step import TrainingStep
from benchmarks.torch_network import TorchNetwork

torch = pytest.importorskip("torch")

BATCH, RATE = 16, 0.01


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "cifarnet.onnx"
    onnx.save(build_cifarnet(seed=3), path)
    return TrainingNetwork(path, cpu_target())


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x = rng.standard_normal((BATCH, 3, 32, 32)).astype(np.float32)
        yield x, rng.integers(0, 10, BATCH).astype(np.int32)


def test_losses_are_those_of_torch(network):
    """SGD with momentum: fp32 sums in two orders, below 1e-4 apart for 20 steps; then training enlarges that."""
    optimizer = SGD(momentum=0.9, weight_decay=5e-4)
    state = TrainingState(network.initial_parameters(), optimizer.slots, {})
    step = TrainingStep(network, {}, optimizer, BATCH)
    other = TorchNetwork(network.checked.proto)
    reference = torch.optim.SGD(other.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    for index, (x, labels) in enumerate(batches(100)):
        ours = step.run(state, x, labels, RATE)
        loss = torch.nn.functional.cross_entropy(other(torch.from_numpy(x)), torch.from_numpy(labels).long())
        reference.zero_grad()
        loss.backward()
        reference.step()
        assert abs(ours.loss - loss.item()) < (1e-4 if index < 20 else 1e-2)
    assert state.count == 100


def test_trained_weights_go_back_into_the_file(network):
    """After some steps the exported model computes in ONNX Runtime what the evaluator computes."""
    import onnxruntime

    state = TrainingState(network.initial_parameters(), (), {})
    step = TrainingStep(network, {}, SGD(), BATCH)
    for x, labels in batches(2):
        step.run(state, x, labels, RATE)
    model = network.to_onnx({name: tensor.numpy() for name, tensor in state.parameters.items()}, {})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, labels = next(batches(1, seed=1))
    expected = session.run(None, {"x": x})[0]
    evaluator = Evaluator(network, BATCH)
    found = evaluator.logits(state, x)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert not np.allclose(found, evaluator.logits(TrainingState(network.initial_parameters(), (), {}), x), atol=1e-3)
    loss, correct = evaluator.run(state, x[:5], labels[:5])
    logits = torch.from_numpy(expected[:5])
    target = torch.from_numpy(labels[:5]).long()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, target, reduction="sum").item(), rel=1e-5)
    assert correct == int((expected[:5].argmax(1) == labels[:5]).sum())
