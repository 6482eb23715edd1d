"""Layers that are almost linear, embeddings that scale, modules with biases of odd kinds: right, or refused."""

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorabook import AdapterError, LoRAConfig, add_lora, load_adapter, lora_parameters, merge_lora, mixed_batch, save_adapter, unmerge_lora

from .moving import adapt


class ScaledEmbedding(nn.Embedding):
    """As Gemma's."""

    def __init__(self, vocabulary, width):
        super().__init__(vocabulary, width)
        self.register_buffer("embed_scale", torch.tensor(3.5), persistent=False)

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class OwnLinear(nn.Module):
    """A linear layer of the user's own, which may store its weight the other way round."""

    def __init__(self, shape=(4, 6)):
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return x @ (self.weight.T if self.weight.shape == (4, 6) else self.weight)


def embeddings():
    torch.manual_seed(0)
    return nn.Sequential(ScaledEmbedding(9, 6), nn.Linear(6, 4))


def test_an_embedding_that_scales_its_rows_scales_the_update_too(tmp_path):
    ids = torch.tensor([[1, 5, 2], [7, 0, 8]])
    adapt(model := embeddings(), targets=("0",))
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(embeddings(), tmp_path)
    expected = theirs(ids)
    torch.testing.assert_close(model(ids), expected)
    with mixed_batch(model, ["default", None]):
        torch.testing.assert_close(model(ids)[0], expected[0])
    merge_lora(model)
    torch.testing.assert_close(model(ids), expected)


def test_gradients_of_frequent_tokens_are_shared_out_where_the_embedding_does_so(tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 6, scale_grad_by_freq=True))

    ids = torch.tensor([[1, 1, 1, 2]])
    adapt(model := network(), targets=("0",))
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(network(), tmp_path, is_trainable=True)
    for run in (model, theirs):
        run(ids).square().sum().backward()
    expected = theirs.base_model.model[0].lora_embedding_A["default"].grad
    torch.testing.assert_close(model[0].lora_A.grad, expected)
    model.zero_grad()
    with mixed_batch(model, ["default"]):
        model(ids).square().sum().backward()
    torch.testing.assert_close(model[0].lora_A.grad, expected)


def normalized(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is a newer way, by parametrization
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: ScaledLinear(6, 4), "'0' does more with its input than multiply it with its weight"),
        (lambda: normalized(nn.Linear(6, 4)), "Linear works its weight out from others"),
        (lambda: OwnLinear((6, 4)), r"OwnLinear has a weight of shape \(6, 4\), not \(4, 6\)"),
    ],
)
def test_a_layer_that_does_not_compute_what_its_weight_says_is_adapted_but_not_merged(layer, message):
    torch.manual_seed(0)
    adapt(model := nn.Sequential(layer()), targets=("0",))
    x = torch.randn(3, 6)
    before = model(x)
    torch.testing.assert_close(before - model[0].base(x), model[0].scaling * x @ model[0].lora_A.T @ model[0].lora_B.T)
    with pytest.raises(AdapterError, match=message):
        merge_lora(model)
    assert torch.equal(model(x), before)
    assert not model[0].merged


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_linear_layer_of_the_users_own_merges(dtype, tolerance):
    torch.manual_seed(0)
    adapt(model := nn.Sequential(OwnLinear()).to(dtype), targets=("0",))
    x = torch.randn(3, 6).to(dtype)
    before, weight = model(x), model[0].base.weight.clone()
    merge_lora(model)
    torch.testing.assert_close(model(x), before, rtol=tolerance, atol=3 * tolerance)
    unmerge_lora(model)
    assert torch.equal(model[0].base.weight, weight)


def test_merging_without_numbers_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 4))
        add_lora(model, LoRAConfig(rank=2, targets=("0",)))
    with pytest.raises(AdapterError, match="'0' has no numbers yet"):
        merge_lora(model)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("names", [("default",), ("sql", "text")])
def test_pytorchs_transformer_layers_compute_the_same_in_evaluation_where_they_read_weights_themselves(names):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
    for name in names:
        adapt(model, name, targets=("linear1", "linear2"))
    x = torch.randn(3, 5, 8)
    slow = model(x)  # with gradients, layers are called
    with torch.no_grad():
        torch.testing.assert_close(model(x), slow, rtol=1e-4, atol=1e-5)
        merge_lora(model)
        torch.testing.assert_close(model(x), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), Conv1D(4, 6), nn.Embedding(6, 4)])
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_the_weight_that_a_layer_tells_is_the_one_that_merging_gives_it(layer, bias):
    adapt(model := nn.Sequential(copy.deepcopy(layer)), targets=("0",), bias=bias)
    told = model[0].weight.clone()
    merge_lora(model)
    assert not torch.equal(model[0].weight, layer.weight)
    torch.testing.assert_close(told, model[0].weight)


def test_a_trained_bias_passes_on_whatever_its_layer_takes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ConvTranspose1d(2, 3, 3, stride=2))
    expected = model[1](x := torch.randn(1, 2, 5), output_size=[12])
    add_lora(model, LoRAConfig(rank=2, targets=("0",), bias="all"))
    assert torch.equal(model[1](x, output_size=[12]), expected)


class Attention(nn.Module):
    """With a bias of its own, and a layer inside."""

    def __init__(self):
        super().__init__()
        self.bias, self.q = nn.Parameter(torch.randn(4)), nn.Linear(6, 4)

    def forward(self, x):
        return self.q(x) + self.bias


def attention():
    torch.manual_seed(0)
    return nn.ModuleDict({"attention": Attention()})


@pytest.mark.parametrize("written_by", ["us", "peft"])
def test_a_bias_of_a_module_that_holds_layers_is_refused_with_the_model_as_it_was(written_by, tmp_path):
    model = attention()
    peft.get_peft_model(attention(), peft.LoraConfig(r=2, target_modules=["q"], bias="all")).save_pretrained(tmp_path)
    take = {"us": lambda: add_lora(model, LoRAConfig(rank=2, targets=("q",), bias="all")), "peft": lambda: load_adapter(model, tmp_path)}
    with pytest.raises(AdapterError, match=r"'attention\.bias'"):
        take[written_by]()
    assert repr(model) == repr(attention())
    assert all(parameter.requires_grad for parameter in model.parameters())
    add_lora(model, LoRAConfig(rank=2, targets=("q",), bias="lora_only"))
    assert len(list(lora_parameters(model))) == 3
