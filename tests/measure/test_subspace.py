"""A random subspace, against the matrix P written out."""

import copy

import pytest
import torch

from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import negative_log_likelihood
from lorabook.measure.subspace import RandomSubspace
from lorabook.training.loop import train
from tests.training.tiny import examples

IDS, LABELS = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[2, 3, 4], [5, 6, 7]])


def gpt(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=13, context=24, n_layer=1, n_head=2, n_embd=6)).double()


def projection(subspace):
    """P, column by column: the change that each unit vector makes."""
    columns = []
    for index in range(len(subspace.coordinates)):
        with torch.no_grad():
            subspace.coordinates.zero_()[index] = 1.0
        columns.append(torch.cat([part.detach().flatten() for part in subspace.change().values()]))
    with torch.no_grad():
        subspace.coordinates.zero_()
    return torch.stack(columns, dim=1)


def test_every_parameter_follows_one_coordinate_and_the_columns_are_orthogonal_and_alike():
    subspace = RandomSubspace(gpt(), 7, seed=3)
    P = projection(subspace)
    total = sum(parameter.numel() for parameter in subspace.model.parameters())
    assert P.shape == (total, 7)
    assert torch.equal(P.abs().sum(dim=1), torch.ones(total, dtype=torch.float64))
    products = P.T @ P
    assert torch.equal(products, products.diagonal().diag())
    assert products.diagonal().max() - products.diagonal().min() <= 1
    assert 0.4 < (P.sum(dim=1) > 0).double().mean() < 0.6


def test_a_fresh_subspace_computes_what_its_model_computes():
    model = gpt()
    expected = model(IDS)
    assert torch.equal(RandomSubspace(model, 5, seed=0)(IDS), expected)


def test_moved_it_computes_what_the_model_with_moved_parameters_computes():
    subspace = RandomSubspace(gpt(), 5, seed=0)
    P = projection(subspace)
    z = 0.1 * torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = gpt()
    flat = torch.nn.utils.parameters_to_vector(moved.parameters())
    torch.nn.utils.vector_to_parameters(flat + P @ z, moved.parameters())
    with torch.no_grad():
        subspace.coordinates.copy_(z)
    torch.testing.assert_close(subspace(IDS), moved(IDS))
    before = subspace(IDS).detach()
    subspace.write()
    assert not subspace.coordinates.any()
    torch.testing.assert_close(subspace.model(IDS), before)
    torch.testing.assert_close(subspace(IDS), before)


def test_the_gradient_is_that_of_all_parameters_projected():
    subspace, model = RandomSubspace(gpt(), 5, seed=0), gpt()
    negative_log_likelihood(subspace(IDS), LABELS)[0].backward()
    negative_log_likelihood(model(IDS), LABELS)[0].backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(subspace.coordinates.grad, projection(subspace).T @ gradient)


def test_training_moves_the_coordinates_and_nothing_else():
    subspace = RandomSubspace(gpt(), 9, seed=0)
    before = copy.deepcopy(subspace.model.state_dict())
    log = train(subspace, examples(), steps=30, learning_rate=0.03, batch_size=5)
    assert sum(log.losses[-5:]) < sum(log.losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in subspace.model.state_dict().items())


def test_the_seed_decides_the_subspace():
    first, same, other = (projection(RandomSubspace(gpt(), 4, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dimension", [0, 1_000_000])
def test_a_dimension_outside_its_range_is_refused(dimension):
    model = gpt()
    with pytest.raises(ValueError, match=rf"dimension must be 1\.\.\d+, the number of parameters, got {dimension}"):
        RandomSubspace(model, dimension, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
