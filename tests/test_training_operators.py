"""The pass that makes operators with gradients, dropout from the file to the step, and what has no gradient."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper
from tvm import relax

from adr_tvm._tvm import cpu_target, is_op
from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.gradients.coverage import missing_gradients
from adr_tvm.models.chain import build_chain, he_normal
from adr_tvm.passes.training_operators import NormalisationLayer, normalisation_layers
from adr_tvm.train.evaluation import Evaluator
from adr_tvm.train.network import TrainingNetwork
from adr_tvm.train.optimizers import SGD
from adr_tvm.train.state import TrainingState
from adr_tvm.train.step import TrainingStep
from adr_tvm.train.tracing import canonical_for_training
from benchmarks.torch_network import TorchNetwork

torch = pytest.importorskip("torch")

BATCH = 6
SHAPES = {
    "conv1.weight": (8, 3, 3, 3),
    "bn1.scale": (8,),
    "bn1.bias": (8,),
    "bn1.mean": (8,),
    "bn1.variance": (8,),
    "conv2.weight": (12, 8, 3, 3),
    "conv2.bias": (12,),
    "fc1.weight": (16, 12 * 3 * 3),
    "fc1.bias": (16,),
    "logits.weight": (5, 16),
    "logits.bias": (5,),
}


def network_file(folder, rate):
    """conv, batch norm, ReLU, max pool, LRN; conv, ReLU, average pool; dropout, dense, dropout, dense."""
    lrn = {"size": 5, "alpha": 0.5, "beta": 0.75, "bias": 2.0}
    layers = [
        ("Conv", "conv1", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "bn1", {"epsilon": 1e-3, "momentum": 0.8}),
        ("Relu", "relu1", {}),
        ("MaxPool", "pool1", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("LRN", "norm1", lrn),
        ("Dropout", "drop0", {"ratio": rate}),
        ("Conv", "conv2", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("Relu", "relu2", {}),
        ("AveragePool", "pool2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", "flatten", {"axis": 1}),
        ("Gemm", "fc1", {"transB": 1}),
        ("Relu", "relu3", {}),
        ("Dropout", "drop1", {"ratio": rate}),
        ("Gemm", "logits", {"transB": 1}),
    ]
    weights = he_normal(SHAPES, seed=1)
    weights["bn1.scale"] = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    path = folder / f"network{rate}.onnx"
    onnx.save(build_chain("network", layers, weights, (3, 12, 12), 5), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def network(folder):
    return TrainingNetwork(network_file(folder, 0.0), cpu_target())


@pytest.fixture(scope="module")
def dropping(folder):
    return TrainingNetwork(network_file(folder, 0.5), cpu_target())


def operators(mod):
    names = []

    def visit(expr):
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            names.append(expr.op.name.removeprefix("relax."))

    relax.analysis.post_order_visit(mod["main"], visit)
    return names


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.standard_normal((BATCH, 3, 12, 12)).astype(np.float32), rng.integers(0, 5, BATCH).astype(np.int32)


def test_what_the_importer_leaves_becomes_operators_with_gradients(network, dropping):
    names = operators(network.mod)
    assert {"adr.batch_norm", "adr.max_pool2d", "adr.lrn"} <= set(names)
    assert "adr.dropout" not in names  # its rate is 0
    assert operators(dropping.mod).count("adr.dropout") == 2
    assert missing_gradients(network.mod) == []
    found = normalisation_layers(network.mod)
    assert found == [NormalisationLayer("bn1", 8, 144, pytest.approx(0.2))]
    results = network.mod["main"].ret_ty.fields
    assert len(results) == 3 and int(results[0].shape[1]) == 5


def test_steps_are_those_of_torch(network):
    """Losses and running statistics; each differs by fp32 sums in another order, far below the tolerances."""
    optimizer = SGD(momentum=0.9)
    state = TrainingState(network.initial_parameters(), optimizer.slots, network.statistics())
    step = TrainingStep(network, {}, optimizer, BATCH)
    other = TorchNetwork(network.checked.proto).train()
    reference = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    for x, labels in batches(8):
        ours = step.run(state, x, labels, 0.05)
        loss = torch.nn.functional.cross_entropy(other(torch.from_numpy(x)), torch.from_numpy(labels).long())
        reference.zero_grad()
        loss.backward()
        reference.step()
        assert abs(ours.loss - loss.item()) < 1e-4
    x, _ = next(batches(1, seed=5))
    with torch.no_grad():
        expected = other.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(Evaluator(network, BATCH).logits(state, x), expected, atol=1e-4)


def test_dropout_draws_anew_at_each_step_and_repeats_with_its_seed(dropping):
    def losses(seed):
        state = TrainingState(dropping.initial_parameters(), (), dropping.statistics())
        step = TrainingStep(dropping, {}, SGD(), BATCH, seed=seed)
        x, labels = next(batches(1))
        return [step.run(state, x, labels, 0.0).loss for _ in range(3)]

    first = losses(1)
    assert len(set(first)) == 3  # nothing is learned at a rate of 0: only the masks differ
    assert losses(1) == first
    assert losses(2) != first


def test_evaluation_drops_nothing(network, dropping):
    x, _ = next(batches(1))
    logits = [
        Evaluator(each, BATCH).logits(TrainingState(each.initial_parameters(), (), each.statistics()), x)
        for each in (network, dropping)
    ]
    np.testing.assert_allclose(*logits, rtol=1e-6, atol=1e-6)


def test_all_operators_without_a_gradient_are_named(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Pad", ["c", "pads"], ["p"], name="edge", mode="edge"),
        helper.make_node("CumSum", ["p", "axis"], ["s"], name="sums"),
        helper.make_node("Round", ["s"], ["r"], name="rounded"),
        helper.make_node("ReduceMean", ["r"], ["y"], name="mean", axes=[2, 3], keepdims=0),
    ]
    arrays = {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "axis": np.array(2),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = tmp_path / "bad.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    mod = canonical_for_training(check_model(path), cpu_target())
    reasons = [reason for _, reason in missing_gradients(mod)]
    assert any("nn.pad: pads with mode replicate" in reason for reason in reasons)
    assert any("round has no gradient" in reason for reason in reasons)
    with pytest.raises(ModelError, match=r"(?s)replicate.*round"):
        TrainingNetwork(path, cpu_target())


def test_batch_norm_over_another_axis_stays(tmp_path):
    x = relax.Var("x", relax.TensorType([2, 3, 4], "float32"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        with bb.dataflow():
            constants = [relax.const(np.ones(3, np.float32)) for _ in range(4)]
            both = bb.emit(relax.op.nn.batch_norm(x, *constants, axis=1))
            y = bb.emit_output(relax.TupleGetItem(both, 0))
        bb.emit_func_output(y)
    from adr_tvm.passes.training_operators import TrainingOperators

    mod = TrainingOperators()(bb.get())
    assert any(is_op(b.value, "relax.nn.batch_norm") for block in mod["main"].body.blocks for b in block.bindings)
    assert missing_gradients(mod) == [("nn.batch_norm", "nn.batch_norm has no gradient")]
