"""Adapters under what a training script does to a model: compile, autocast, checkpoint, meta device, loss scaling, two processes."""

import copy

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lorabook import (
    LoRAConfig,
    LoRALinear,
    NF4Linear,
    active_adapter,
    adapter_disabled,
    add_lora,
    lora_parameters,
    merge_lora,
    mixed_batch,
    unmerge_lora,
    use_adapter,
)


def adapt(model, name="default", alpha=8.0, **settings):
    add_lora(model, LoRAConfig(**{"rank": 2, "alpha": alpha, "targets": ("q_proj", "proj"), **settings}), name)
    with torch.no_grad():
        for parameter in lora_parameters(model, name):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


class Graphs:
    """A backend for torch.compile that counts the graphs it is given."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.mark.slow
def test_adapters_of_one_shape_share_one_compiled_graph(make_model, ids, graphs):
    model = make_model()
    for name in ("a", "b", "c", "d"):
        adapt(model, name)
    use_adapter(model, "a")
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for name in ("a", "b", "c", "d", "a", "c"):
        use_adapter(model, name)
        torch.testing.assert_close(compiled(ids), model(ids))
    assert graphs.count == 1


@pytest.mark.slow
def test_another_alpha_costs_one_more_graph_and_then_none(make_model, ids, graphs):
    model = make_model()
    alphas = {"a": 8.0, "b": 5.0, "c": 3.0, "d": 11.0}
    for name, alpha in alphas.items():
        adapt(model, name, alpha)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for name in alphas:
        use_adapter(model, name)
        torch.testing.assert_close(compiled(ids), model(ids))
    assert graphs.count <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"dora": True}, {"init": "pissa"}, {"bias": "all"}, {"targets": ("embedding",)}, {"train_modules": ("norm",)}]
)
def test_every_kind_of_layer_compiles_whole_forward_and_backward(settings, make_model, ids):
    torch._dynamo.reset()
    adapt(model := make_model(), **settings)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    outputs = [m(ids) for m in (model, compiled)]
    torch.testing.assert_close(*outputs)
    for y in outputs:
        y.square().sum().backward()
    for mine, theirs in zip(lora_parameters(model), lora_parameters(other), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    torch._dynamo.reset()


@pytest.mark.slow
def test_merging_and_disabling_take_effect_in_a_compiled_model(make_model, ids):
    torch._dynamo.reset()
    adapt(model := make_model())
    compiled = torch.compile(model, backend="eager")
    expected = model(ids)
    torch.testing.assert_close(compiled(ids), expected)
    with adapter_disabled(model):
        torch.testing.assert_close(compiled(ids), make_model()(ids))
    merge_lora(model)
    torch.testing.assert_close(compiled(ids), expected)
    unmerge_lora(model)
    torch.testing.assert_close(compiled(ids), expected)
    with mixed_batch(model, ["default", None]):
        torch.testing.assert_close(compiled(ids)[1], make_model()(ids)[1])
    torch.testing.assert_close(compiled(ids), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"bias": "all", "train_modules": ("blocks.0.norm",)}, {"targets": ("embedding", "proj")}]
)
def test_autocast_computes_in_bfloat16_and_leaves_gradients_in_float32(settings, make_model, ids):
    adapt(model := make_model(), **settings)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(ids)
    torch.testing.assert_close(y.float(), model(ids), atol=0.3, rtol=0.1)
    y.float().sum().backward()
    assert {parameter.grad.dtype for parameter in lora_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("base", [lambda: nn.Linear(7, 5), lambda: NF4Linear(nn.Linear(7, 5))])
def test_gradient_checkpointing_gives_the_same_gradients(base):
    torch.manual_seed(0)
    layer = LoRALinear(base(), 2, 8.0, dropout=0.3)
    layer.lora_B.data.normal_()
    x, gradients = torch.randn(4, 7), []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        torch.manual_seed(1)
        run(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in (layer.lora_A, layer.lora_B)])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_model_on_the_meta_device_is_adapted_filled_and_started(make_model, ids):
    expected = make_model()
    with torch.device("meta"):
        model = type(expected)()
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj", "proj"), init="pissa"))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    model.blocks[0].q_proj.base.load_state_dict(expected.blocks[0].q_proj.state_dict())
    layer = model.blocks[0].q_proj
    layer.reset_parameters()
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), expected.blocks[0].q_proj(x))
    assert layer.delta_weight().abs().max() < 1e-5
    assert layer.lora_A.isfinite().all()


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal"])
def test_a_layer_filled_late_starts_as_one_filled_at_once(init):
    base = nn.Linear(7, 5)
    layer = LoRALinear(base, 2, 8.0, init=init, generator=torch.Generator().manual_seed(3))
    late = LoRALinear(nn.Linear(7, 5, device="meta"), 2, 8.0, init=init).to_empty(device="cpu")
    late.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(late.lora_A, layer.lora_A)
    assert torch.equal(late.lora_B, layer.lora_B)


def test_loss_scaling_over_an_fp16_base_unscales_float32_adapters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5)).half()
    add_lora(model, LoRAConfig(rank=2, targets=("0",), bias="all"))
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [parameter.clone() for parameter in lora_parameters(model)]
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 7).half()).float().square().mean()).backward()
        scaler.unscale_(optimizer)  # raises for gradients in half precision
        scaler.step(optimizer)
        scaler.update()
    assert not any(torch.equal(*pair) for pair in zip(before, lora_parameters(model), strict=True))


def test_a_trained_copy_in_a_half_precision_model_keeps_the_outer_type():
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3)).half()
    add_lora(model, LoRAConfig(rank=2, targets=("0",), train_modules=("1",)))
    x = torch.randn(4, 7).half()
    assert model(x).dtype == torch.float16
    assert {parameter.dtype for parameter in lora_parameters(model)} == {torch.float32}
    assert model.double()(x.double()).dtype == torch.float64


def test_moving_a_model_moves_every_adapter(make_model):
    model = make_model()
    for name in ("a", "b"):
        adapt(model, name)
    model.double()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    use_adapter(model, "a")
    assert active_adapter(model) == "a"
    assert model(torch.tensor([[1, 2]])).dtype == torch.float64


def test_training_mode_reaches_adapters_that_are_not_in_use(make_model):
    model = make_model()
    for name in ("a", "b"):
        adapt(model, name, dropout=0.5)
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


def _one_of_two(rank, folder, results):
    """A process of two: two steps on its half of a batch, gradients averaged; then half of every weight of another model."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = two_adapters()
    parallel = nn.parallel.DistributedDataParallel(model)  # find_unused_parameters stays off: idle ones do not train
    x = torch.linspace(-1, 1, 32).view(4, 8)
    train(model, lambda: F.mse_loss(parallel(x[2 * rank : 2 * rank + 2]), torch.zeros(2, 4)))
    trained = [parameter.detach().tolist() for parameter in lora_parameters(model)]

    sharded, whole, mesh = two_adapters(), two_adapters(), init_device_mesh("cpu", (2,))
    for module in (sharded[0], sharded[2], sharded):
        fully_shard(module, mesh=mesh)
    pairs = [[m(x) for m in (sharded, whole)]]
    for y in pairs[0]:
        y.square().sum().backward()
    pairs += [(p.grad.full_tensor(), q.grad) for p, q in zip(lora_parameters(sharded), lora_parameters(whole), strict=True)]
    for m in (sharded, whole):
        use_adapter(m, "idle")
    pairs.append([m(x) for m in (sharded, whole)])
    results[rank] = (trained, [torch.allclose(*pair, rtol=1e-5, atol=1e-5) for pair in pairs])
    torch.distributed.destroy_process_group()


def two_adapters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    for name in ("idle", "busy"):
        adapt(model, name, targets=("0", "2"))
    return model


def train(model, loss):
    for _ in range(2):
        loss().backward()
        with torch.no_grad():
            for parameter in lora_parameters(model):
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_one_of_two, (str(tmp_path_factory.mktemp("two")), results), nprocs=2)
        return dict(results)


@pytest.mark.slow
def test_two_processes_train_as_one_does(two_processes):
    model, x = two_adapters(), torch.linspace(-1, 1, 32).view(4, 8)
    train(model, lambda: F.mse_loss(model(x), torch.zeros(4, 4)))
    assert two_processes[0][0] == two_processes[1][0]
    for found, expected in zip(two_processes[0][0], lora_parameters(model), strict=True):
        torch.testing.assert_close(torch.tensor(found), expected.detach())


@pytest.mark.slow
def test_sharded_weights_adapt_and_switch_as_whole_ones_do(two_processes):
    for _, agreements in two_processes.values():
        assert agreements == [True] * 6
