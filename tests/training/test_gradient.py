"""The gradient of a batch, against autograd on the whole of it in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorabook.training.gradient import accumulate_gradient
from tests.training.tiny import adapted_gpt, examples


def whole_gradient(model, batch):
    """One pass without padding over each sequence, the mean over all target tokens, in float64."""
    losses = []
    for inputs, labels in batch:
        scores = model(torch.tensor([inputs]))[0].log_softmax(-1)
        losses += [-scores[t, label] for t, label in enumerate(labels) if label >= 0]
    mean = torch.stack(losses).mean()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return mean.item(), dict(zip(names, torch.autograd.grad(mean, parameters), strict=True))


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3, 7, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size):
    model, batch = adapted_gpt().double(), examples(7)
    mean, expected = whole_gradient(model, batch)
    loss, target_tokens = accumulate_gradient(model, batch, micro_batch_size=micro_batch_size)
    assert loss.item() == pytest.approx(mean, rel=1e-6)
    assert target_tokens == 4 * 16 + 3
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-13)


def test_averaging_the_micro_batches_would_give_another_gradient():
    """The mistake that the division by all target tokens avoids; so these batches can tell the two apart."""
    model, batch = adapted_gpt().double(), examples(7)
    _, expected = whole_gradient(model, batch)
    parts = [batch[0::2], batch[1::2]]  # four targets of 16 tokens, three of one
    for part in parts:
        accumulate_gradient(model, part)
    averaged = {name: p.grad / len(parts) for name, p in model.named_parameters() if p.requires_grad}
    relative = [(averaged[name] - expected[name]).norm() / expected[name].norm() for name in expected]
    assert max(relative) > 0.1


def test_gradients_add_to_those_that_are_there():
    model, batch = adapted_gpt().double(), examples(4)
    accumulate_gradient(model, batch)
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    accumulate_gradient(model, batch)
    for name, gradient in once.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * gradient)


def test_bfloat16_computes_in_it_and_leaves_parameters_and_gradients_in_float32():
    seen = []

    def record(_module, _inputs, output):
        seen.append(output.dtype)

    model = adapted_gpt()
    model.blocks[0].up_proj.base.register_forward_hook(record)
    loss, _ = accumulate_gradient(model, examples(4), precision="bfloat16")
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert loss.dtype == torch.float32
    exact, _ = accumulate_gradient(model, examples(4), precision="float32")
    assert seen[-1] == torch.float32
    assert 0 < abs(loss.item() - exact.item()) < 0.05


def test_the_loss_agrees_with_cross_entropy_over_all_targets():
    model, batch = adapted_gpt(), examples(1)
    inputs, labels = batch[0]
    expected = F.cross_entropy(model(torch.tensor([inputs]))[0], torch.tensor(labels), ignore_index=-100)
    torch.testing.assert_close(accumulate_gradient(model, batch)[0], expected.detach())


def test_a_batch_without_targets_is_refused():
    with pytest.raises(ValueError, match="the batch has no target token: every example needs a label"):
        accumulate_gradient(adapted_gpt(), [([1, 2], [-100, -100])])


@pytest.mark.parametrize(
    ("settings", "message"), [({"micro_batch_size": -1}, "micro_batch_size must be at least 1"), ({"precision": "bf16"}, "got 'bf16'")]
)
def test_settings_outside_their_range_are_refused(settings, message):
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    with pytest.raises(ValueError, match=message):
        accumulate_gradient(model, [([1], [2])], **settings)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        accumulate_gradient(model.requires_grad_(False), [([1], [2])])
