"""Spectra of weight changes, against NumPy; models with truncated changes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lorabook import AdapterError, LoRAConfig, add_lora, merge_lora, quantize_base
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.measure.spectra import change_spectrum, linear_weights, truncate_changes


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=11, context=9, n_layer=1, n_head=2, n_embd=6))


def moved(before, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {path: weight + torch.randn(weight.shape, generator=generator) for path, weight in before.items()}


def test_the_spectrum_is_that_of_the_change_and_not_of_the_weight():
    before, after = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    values = np.linalg.svd((after - before).numpy(), compute_uv=False)
    spectrum = change_spectrum(before, after)
    np.testing.assert_allclose(spectrum.singular_values, values, rtol=1e-12)
    np.testing.assert_allclose(spectrum.energy, np.cumsum(values**2) / np.sum(values**2), rtol=1e-12)
    shares = values / values.sum()
    assert spectrum.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    assert spectrum.relative_size == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))


def test_a_merged_adapter_of_rank_2_is_a_change_with_two_directions(gpt):
    before = linear_weights(gpt)
    add_lora(gpt, LoRAConfig(rank=2, alpha=6.0, targets="all-linear"))
    for name, parameter in gpt.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter)
    merge_lora(gpt)
    for path, weight in before.items():
        spectrum = change_spectrum(weight, gpt.get_submodule(path).base.weight)
        assert spectrum.energy[1] == pytest.approx(1.0, abs=1e-9)
        assert spectrum.energy[0] < 0.999


def test_the_output_layer_that_shares_the_embeddings_weight_is_left_out(gpt):
    names = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "up_proj", "down_proj")
    assert list(linear_weights(gpt)) == [f"blocks.0.{name}" for name in names]


def test_the_weights_are_copies(gpt):
    before = linear_weights(gpt)
    kept = copy.deepcopy(before)
    with torch.no_grad():
        gpt.blocks[0].up_proj.weight.zero_()
    assert all(torch.equal(before[path], kept[path]) for path in kept)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_truncated_changes_have_the_rank_asked_for_and_are_the_nearest(gpt, rank):
    before = linear_weights(gpt)
    after = moved(before)
    truncate_changes(gpt, before, after, rank)
    for path, weight in before.items():
        change = (after[path] - weight).double().numpy()
        kept = (gpt.get_submodule(path).weight - weight).double().detach().numpy()
        values = np.linalg.svd(change, compute_uv=False)
        assert np.linalg.matrix_rank(kept, tol=1e-4) == rank
        assert np.linalg.norm(change - kept) == pytest.approx(np.sqrt(np.sum(values[rank:] ** 2)), rel=1e-5)


def test_full_rank_gives_back_the_trained_weights(gpt):
    before = linear_weights(gpt)
    after = moved(before)
    truncate_changes(gpt, before, after, 6)
    for path, weight in after.items():
        torch.testing.assert_close(gpt.get_submodule(path).weight, weight)


def test_other_parameters_stay(gpt):
    before, others = linear_weights(gpt), {name: value.clone() for name, value in gpt.state_dict().items()}
    truncate_changes(gpt, before, moved(before), 1)
    changed = {name for name, value in gpt.state_dict().items() if not torch.equal(value, others[name])}
    assert changed == {f"{path}.weight" for path in before}


def test_layers_that_differ_and_negative_ranks_are_refused(gpt):
    before = linear_weights(gpt)
    after = moved(before)
    with pytest.raises(ValueError, match="rank of at least 0"):
        truncate_changes(gpt, before, after, -1)
    after.pop("blocks.0.up_proj")
    with pytest.raises(ValueError, match="the same layers"):
        truncate_changes(gpt, before, after, 1)
    assert all(torch.equal(gpt.get_submodule(path).weight, weight) for path, weight in before.items())


def test_a_weight_that_did_not_change_has_no_spectrum():
    weight = torch.randn(5, 3)
    with pytest.raises(ValueError, match="zero"):
        change_spectrum(weight, weight)
    with pytest.raises(ValueError, match="shapes must agree"):
        change_spectrum(weight, weight.T)


def test_shapes_that_differ_leave_every_layer_as_it_was():
    model, other = (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, width)) for width in (3, 5))
    before = linear_weights(other)
    start = linear_weights(model)
    with pytest.raises(ValueError, match="shapes of '1' must agree"):
        truncate_changes(model, before, {path: weight + 1 for path, weight in before.items()}, rank=1)
    assert all(torch.equal(weight, start[path]) for path, weight in linear_weights(model).items())


def test_a_layer_without_so_many_directions_gets_the_weight_itself_bit_for_bit():
    model = nn.Sequential(nn.Linear(6, 4))
    before, after = linear_weights(model), {"0": torch.randn(4, 6)}
    truncate_changes(model, before, after, rank=4)
    assert torch.equal(model[0].weight, after["0"])
    truncate_changes(model, before, after, rank=0)
    assert torch.equal(model[0].weight, before["0"])


def test_a_quantized_layer_has_no_weight_to_copy():
    model = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 5))
    quantize_base(model, ("0",))
    with pytest.raises(AdapterError, match="'0' is a NF4Linear, without a weight"):
        linear_weights(model)


def test_a_wrapper_is_no_part_of_a_path():
    model = nn.Sequential(nn.Linear(6, 4))
    before = linear_weights(nn.DataParallel(model))
    assert list(before) == ["0"]
    truncate_changes(nn.DataParallel(model), before, {"0": before["0"] + 1}, rank=4)
    assert torch.equal(model[0].weight, before["0"] + 1)
