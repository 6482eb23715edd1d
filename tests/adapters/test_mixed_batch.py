"""A batch whose rows go through different adapters: each row as if alone, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lorabook import (
    AdapterError,
    LoRAConfig,
    adapter_disabled,
    add_lora,
    lora_parameters,
    merge_lora,
    mixed_batch,
    save_adapter,
    unmerge_lora,
    use_adapter,
)

NAMES = ("default", "sql", "text")


class Network(nn.Module):
    def __init__(self, d, k):
        super().__init__()
        self.embedding = nn.Embedding(7, k, padding_idx=0)
        self.hidden = nn.Linear(k, d)
        self.head = nn.Linear(d, 4, bias=False)

    def forward(self, ids):
        return self.head(torch.tanh(self.hidden(self.embedding(ids))))


def adapted(d=5, k=8, ranks=(1, 3, 2), dtype=torch.float32, **settings):
    model = Network(d, k).to(dtype)
    targets = [("hidden",), ("hidden", "embedding"), ("embedding", "head")]
    for name, rank, target in zip(NAMES, ranks, targets, strict=True):
        add_lora(model, LoRAConfig(rank=rank, alpha=5.0, targets=target, rank_stabilized=rank == 3, **settings), name)
    with torch.no_grad():
        for name in NAMES:
            for parameter in lora_parameters(model, name):
                parameter.normal_(0, 0.5)
                parameter.requires_grad_(True)
    return model


def row_alone(model, ids, name):
    if name is None:
        with adapter_disabled(model):
            return model(ids)
    use_adapter(model, name)
    for every in NAMES:
        for parameter in lora_parameters(model, every):
            parameter.requires_grad_(True)
    return model(ids)


@given(
    names=st.lists(st.sampled_from([*NAMES, None]), min_size=1, max_size=6),
    sizes=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    ranks=st.tuples(*[st.integers(1, 3)] * 3),
    init=st.sampled_from(["kaiming", "pissa"]),
    seed=st.integers(0, 99),
)
def test_each_row_gets_what_its_adapter_gives_alone_and_so_do_the_gradients(names, sizes, ranks, init, seed):
    torch.manual_seed(seed)
    model = adapted(*sizes, ranks, torch.float64, init=init)
    ids = torch.randint(0, 7, (len(names), 3))
    weights = torch.randn(len(names), 3, 4, dtype=torch.float64)
    with mixed_batch(model, names):
        together = model(ids)
    assert together.requires_grad == any(names)
    if together.requires_grad:
        (together * weights).sum().backward()
    parameters = [parameter for name in NAMES for parameter in lora_parameters(model, name)]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    model.zero_grad()
    for row, name in enumerate(names):
        alone = row_alone(model, ids[row : row + 1], name)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-6)
        if alone.requires_grad:
            (alone * weights[row : row + 1]).sum().backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


def test_a_row_of_none_is_the_bare_backbone_exactly():
    model = adapted()
    ids = torch.randint(0, 7, (2, 3))
    with mixed_batch(model, ["sql", None]):
        mixed = model(ids)
    torch.testing.assert_close(mixed[1], row_alone(model, ids, None)[1], rtol=0, atol=1e-6)


def test_one_adapters_infinity_stays_in_its_own_rows():
    model = adapted()
    next(iter(lora_parameters(model, "sql"))).data.fill_(float("inf"))
    with mixed_batch(model, ["sql", "text", None]):
        outputs = model(torch.ones(3, 2, dtype=torch.long))
    assert outputs[1:].isfinite().all()
    assert not outputs[0].isfinite().all()


def test_gpt2_rows_go_through_their_own_adapters_while_it_generates():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=13, n_positions=12, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=None)
    ).eval()
    for name, rank in (("sql", 2), ("text", 4)):
        add_lora(model, LoRAConfig(rank=rank, targets=("c_attn", "c_proj", "wte")), name)
        for parameter in lora_parameters(model, name):
            parameter.data.normal_()
    ids = torch.randint(0, 13, (3, 4))
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    with mixed_batch(model, ["text", None, "sql"]):
        together = model.generate(ids, **settings)
    settings["attention_mask"] = settings["attention_mask"][:1]
    for row, name in enumerate(["text", None, "sql"]):
        if name is None:
            with adapter_disabled(model):
                alone = model.generate(ids[row : row + 1], **settings)
        else:
            use_adapter(model, name)
            alone = model.generate(ids[row : row + 1], **settings)
        assert torch.equal(together[row], alone[0])


def test_a_sole_default_adapter_mixes_with_none_and_stays_as_it_is():
    model = nn.Sequential(nn.Linear(6, 4))
    add_lora(model, LoRAConfig(rank=2, targets=("0",)))
    model[0].lora_B.data.normal_()
    x, printed = torch.randn(2, 6), repr(model)
    with mixed_batch(model, ["default", None]):
        mixed = model(x)
        keys = list(model.state_dict())
    torch.testing.assert_close(mixed, torch.stack((model(x)[0], model[0].base(x)[1])))
    assert (repr(model), list(model.state_dict())) == (printed, keys)


def test_each_row_has_the_dropout_of_its_own_adapter():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1000, 1))
    for name, dropout in (("a", 0.0), ("b", 0.5)):
        add_lora(model, LoRAConfig(rank=1, alpha=1.0, targets=("0",), dropout=dropout), name)
        for parameter in lora_parameters(model, name):
            parameter.data.fill_(1.0)
    x = torch.ones(3, 1000)
    with mixed_batch(model, ["a", "b", None]):
        update = model(x) - model[0].base(x)
        model.eval()
        still = model(x) - model[0].base(x)
    torch.testing.assert_close(update[[0, 2], 0], torch.tensor([1000.0, 0.0]))
    kept = update[1].item() / 2  # each input that is kept counts double
    assert kept == pytest.approx(500, abs=80)
    assert kept != 500
    torch.testing.assert_close(still[:, 0], torch.tensor([1000.0, 1000.0, 0.0]))


def test_a_half_precision_base_keeps_its_output_type():
    model = nn.Sequential(nn.Linear(6, 4).bfloat16())
    add_lora(model, LoRAConfig(rank=2, targets=("0",)), "a")
    with mixed_batch(model, ["a", None]):
        assert model(torch.randn(2, 3, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "needs a name or None for each row"),
        ("sql", "needs a name"),
        (["sql", "typo"], "no adapter is called 'typo'; there are: default, sql, text"),
    ],
)
def test_wrong_names_are_refused(names, message):
    model = adapted()
    expected = model(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(AdapterError, match=message), mixed_batch(model, names):
        pass
    assert torch.equal(model(torch.ones(2, 2, dtype=torch.long)), expected)


def test_a_batch_of_another_length_is_refused_and_the_model_is_as_it_was():
    model = adapted()
    ids = torch.ones(3, 2, dtype=torch.long)
    expected = model(ids)
    with pytest.raises(AdapterError, match="given 2 names, and the batch has 3 rows"), mixed_batch(model, ["sql", None]):
        model(ids)
    assert torch.equal(model(ids), expected)


def test_an_input_without_rows_is_refused():
    model = nn.Sequential(nn.Linear(6, 4))
    add_lora(model, LoRAConfig(rank=2, targets=("0",)))
    for number in (1, 6):
        with pytest.raises(AdapterError, match="the batch has no rows"), mixed_batch(model, ["default"] * number):
            model(torch.randn(6))


@pytest.mark.parametrize("shape", [(3, 6), (3, 0, 6), (3, 2, 5, 6)])
def test_rows_may_have_any_dimensions(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    for name in ("a", "b"):
        add_lora(model, LoRAConfig(rank=2, targets=("0",)), name)
        next(parameter for parameter in lora_parameters(model, name) if parameter.shape == (4, 2)).data.normal_()
    x = torch.randn(shape)
    with mixed_batch(model, ["b", None, "a"]):
        mixed = model(x)
    for row, name in ((0, "b"), (2, "a")):
        use_adapter(model, name)
        torch.testing.assert_close(mixed[row], model(x[row]))


def test_a_module_that_another_adapter_trains_in_full_takes_what_it_always_took():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, *, positions):
            return self.layer(x) + positions

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.block, self.wpe = nn.Linear(6, 4), Block(), nn.Embedding(5, 4)

        def forward(self, x):
            return self.block(self.q(x), positions=self.wpe(torch.arange(x.shape[1])))

    torch.manual_seed(0)
    model = Model()
    add_lora(model, LoRAConfig(rank=2, targets=("q",)), "a")
    x = torch.randn(2, 5, 6)
    expected = model(x)
    add_lora(model, LoRAConfig(rank=2, targets=("q",), train_modules=("block", "wpe")), "b")
    with mixed_batch(model, ["a", None]):
        assert torch.equal(model(x), expected)


def test_a_merged_adapter_is_not_mixed():
    model = adapted()
    merge_lora(model)
    with pytest.raises(AdapterError, match="unmerge_lora"), mixed_batch(model, ["sql"]):
        pass
    unmerge_lora(model)


@pytest.mark.parametrize("settings", [{"dora": True}, {"bias": "lora_only"}, {"train_modules": ("1",)}])
def test_rows_cannot_share_what_is_no_low_rank_update(settings):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    add_lora(model, LoRAConfig(rank=2, targets=("0",), **settings), "a")
    with pytest.raises(AdapterError, match="use_adapter instead"), mixed_batch(model, ["a", None]):
        pass


@pytest.mark.parametrize(
    "action",
    [
        lambda model, folder: use_adapter(model, "sql"),
        lambda model, folder: merge_lora(model),
        lambda model, folder: save_adapter(model, folder, "sql"),
        lambda model, folder: adapter_disabled(model).__enter__(),
        lambda model, folder: mixed_batch(model, ["sql"]).__enter__(),
    ],
)
def test_inside_the_block_what_would_not_take_effect_is_refused(action, tmp_path):
    model = adapted()
    with mixed_batch(model, ["sql"]), pytest.raises(AdapterError, match="mixed_batch block is running"):
        action(model, tmp_path)
    assert not list(tmp_path.iterdir())
    use_adapter(model, "sql")


def test_gradcheck_of_a_mixed_batch():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    for name, rank in (("a", 1), ("b", 2)):
        add_lora(model, LoRAConfig(rank=rank, alpha=5.0, targets=("0",), init="pissa" if rank == 2 else "kaiming"), name)
    parameters = [parameter for name in "ab" for parameter in lora_parameters(model, name)]
    for parameter in parameters:
        parameter.data.add_(torch.randn_like(parameter))
        parameter.requires_grad_(True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with mixed_batch(model, ["b", None, "a"]):
        assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *parameters))
