"""What training holds in memory, by kind: predicted from shapes, and measured on a model. It knows no preset by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorabook.adapters.nf4 import BLOCK, SCALE_BLOCK
from lorabook.adapters.targets import ALL_LINEAR, Target
from lorabook.measure.counting import count_lora, count_parameters, linear_sizes, targeted_sizes
from lorabook.measure.presets import ModelShape

METHODS = ("full", "lora", "qlora")
# Bytes of weight, gradient and optimizer state for each number that trains. In bfloat16 the optimizer keeps a float32 copy of the weight
# beside Adam's two moments. An adapter is float32 throughout.
_TRAINED = {"float32": (4, 4, 8), "bfloat16": (2, 2, 12)}
_ADAPTER = _TRAINED["float32"]


@dataclass(frozen=True)
class Ledger:
    """Bytes that one step of training holds, by kind.

    Args:
        weights: all weights, trained or frozen, the adapter's included.
        gradients: one for each trained number.
        optimizer: Adam's two moments, and float32 copies of weights trained in 16 bits.
        activations: what the forward pass keeps for the backward pass.

    Example:
        >>> Ledger(weights=400, gradients=400, optimizer=800).total
        1600
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int = 0

    @property
    def total(self) -> int:
        """All four together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_ledger(
    model: nn.Module | ModelShape,
    method: str,
    *,
    rank: int = 8,
    targets: Iterable[Target] | str = ALL_LINEAR,
    precision: str = "bfloat16",
    batch: tuple[int, int] | None = None,
) -> Ledger:
    """Predict the bytes of training with AdamW, from shapes alone.

    In float32 a trained number takes 4 + 4 + 8 bytes (weight, gradient, two moments). In bfloat16 a frozen one takes 2 and a fully
    trained one 2 + 2 + 12, the last with a float32 copy; an adapter stays in float32. "qlora" stores every linear layer but the output head
    in four bits, with 4.127 bits a weight, and the rest in the precision.

    Args:
        model: a bare module, which may be on the meta device, or the shapes of one.
        method: "full", "lora" or "qlora".
        rank: r of the adapter; without meaning for "full".
        targets: what the adapter adapts, as in :class:`~lorabook.LoRAConfig`.
        precision: "bfloat16" or "float32".
        batch: sequences and tokens of each, (B, T), to predict the activations as well; for the book's GPT, and in float32.

    Raises:
        AdapterError: a target that matches no layer.
        ValueError: another method or precision, or a batch in bfloat16, whose copies depend on the implementation.
        TypeError: a batch for another kind of model.

    Source: Rajbhandari et al. 2020 (ZeRO), section 3; Dettmers et al. 2023 (QLoRA), section 3.
    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> from lorabook.measure.presets import PRESETS
        >>> [round(memory_ledger(PRESETS["llama-2-7b"], method, rank=16).total / 1e9, 2) for method in METHODS]
        [107.81, 14.12, 4.51]
    """
    if method not in METHODS or precision not in _TRAINED:
        raise ValueError(
            f"need a method of {', '.join(METHODS)} and a precision of {', '.join(_TRAINED)}, got {method!r} and {precision!r}"
        )
    total = model.total if isinstance(model, ModelShape) else count_parameters(model).total
    ranks: dict[str, int] | None = None
    if method == "full":
        weights, gradients, optimizer = (total * size for size in _TRAINED[precision])
    else:
        adapter = count_lora(model, targets, rank)
        ranks = dict.fromkeys(adapter.layers, rank)
        quantized = [d * k for d, k in targeted_sizes(model, ALL_LINEAR).values()] if method == "qlora" else []
        frozen = (total - sum(quantized)) * _TRAINED[precision][0] + sum(map(nf4_bytes, quantized))
        weights, gradients, optimizer = (adapter.trainable * size for size in _ADAPTER)
        weights += frozen
    if batch is None:
        return Ledger(weights, gradients, optimizer)
    if precision != "float32":
        raise ValueError(f"activations are predicted in float32, got {precision!r}: leave out batch")
    return Ledger(weights, gradients, optimizer, gpt_activation_bytes(model, batch, ranks))


def nf4_bytes(numbers: int) -> int:
    """Bytes of a matrix of so many weights in four bits: codes, 8-bit scales, their scales and one mean.

    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> round(8 * nf4_bytes(4096 * 4096) / 4096**2, 3)
        4.127
    """
    blocks = -(-numbers // BLOCK)
    return blocks * BLOCK // 2 + blocks + 4 * -(-blocks // SCALE_BLOCK) + 4


def gpt_activation_bytes(model: nn.Module | ModelShape, batch: tuple[int, int], ranks: dict[str, int] | None = None) -> int:
    """Predict what autograd keeps for the backward pass of the book's GPT and its loss, in float32.

    A layer keeps its input if its own weight, or an adapter on it, trains. Everything that is not linear keeps what its derivative needs as
    soon as a gradient has to pass through, trained or not: norms their input, attention its queries, keys, values and output, GELU its
    input, the loss its logarithms of probabilities. Below the lowest adapter no gradient passes, and nothing is kept.

    Args:
        model: a GPT as in ``lorabook.language.gpt``, or the shapes of one: q_proj, ... down_proj in blocks.
        batch: sequences and tokens of each, (B, T).
        ranks: the rank of each adapted layer by path, for LoRA; None when the whole model trains.

    Raises:
        TypeError: another kind of model.
        ValueError: an adapter outside the blocks.

    Chapter: Counting: parameters, memory, FLOPs.
    """
    width, heads, n_layer, vocab = _gpt_sizes(model)
    outside = [path for path in ranks or {} if not path.startswith("blocks.")]
    if outside:
        raise ValueError(f"activations are predicted for adapters in the blocks, got one on {outside[0]!r}: leave out batch")
    tokens = batch[0] * batch[1]
    full, flows, numbers = ranks is None, ranks is None, 0  # flows: whether a gradient has to pass through here
    ranks = ranks or {}
    norm = width + 2  # its input, the mean and the reciprocal deviation of each token
    for index in range(n_layer):

        def kept(layers: tuple[str, ...], inputs: int, block: str = f"blocks.{index}.") -> int:
            adapters = [ranks[block + layer] for layer in layers if block + layer in ranks]
            return (inputs if full or adapters else 0) + sum(adapters)  # an adapter also keeps A x, r numbers

        numbers += norm * flows
        inputs = kept(("attention.q_proj", "attention.k_proj", "attention.v_proj"), width)
        flows = flows or inputs > 0
        attended = (4 * width + heads) * flows  # queries, keys, values, output; a logarithm for each head
        projected = kept(("attention.o_proj",), 0 if flows else width)  # its input is the output just counted
        flows = flows or projected > 0
        numbers += inputs + attended + projected + norm * flows
        expanded = kept(("up_proj",), width)
        flows = flows or expanded > 0
        contracted = kept(("down_proj",), 4 * width)
        numbers += expanded + 4 * width * flows + contracted
        flows = flows or contracted > 0
    numbers += norm * flows + (width if full else 0) + vocab  # the output head keeps its input only if it trains
    ids = 8 * (tokens + batch[1]) if full else 0  # token and position numbers, kept by the embeddings
    labels = 8 * tokens + 4  # kept by the loss, and its total weight
    return 4 * tokens * numbers + ids + labels


def measured_ledger(model: nn.Module, loss: Callable[[], Tensor]) -> Ledger:
    """Measure the bytes of one step of training with AdamW, at a learning rate of zero: the weights stay, gradients are cleared.

    Activations are the memory behind all tensors that autograd keeps, each stretch of memory once, without the model's own parameters
    and buffers.

    Args:
        model: what is trained: its parameters that require a gradient.
        loss: computes the loss of one batch with the model.

    Returns:
        The bytes; those of the step counters, four for each trained tensor, are left out.

    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> layer = nn.Linear(6, 4)
        >>> measured_ledger(layer, lambda: layer(torch.ones(3, 6)).sum())
        Ledger(weights=112, gradients=112, optimizer=224, activations=72)
    """
    own = [*model.parameters(), *model.buffers()]
    trained = [parameter for parameter in own if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    optimizer.zero_grad()
    activations, value = saved_bytes(loss, besides=own)
    value.backward()  # type: ignore[no-untyped-call]
    gradients = sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None)
    optimizer.zero_grad(set_to_none=False)  # at a rate of zero a NaN would still reach the weights
    optimizer.step()
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    optimizer.zero_grad()
    return Ledger(sum(tensor.nbytes for tensor in own), gradients, moments, activations)


def saved_bytes(loss: Callable[[], Tensor], *, besides: Iterable[Tensor] = ()) -> tuple[int, Tensor]:
    """Bytes that autograd keeps while a loss is computed, and the loss, from which one may still go backward.

    Args:
        loss: the computation.
        besides: tensors whose memory does not count, such as a model's parameters.

    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> x = torch.ones(5, requires_grad=True)
        >>> saved_bytes(lambda: x.exp().sum())[0]  # exp keeps its output, 5 numbers of 4 bytes
        20
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    return sum(found.values()), value


def _gpt_sizes(model: nn.Module | ModelShape) -> tuple[int, int, int, int]:
    """Width, heads, blocks and vocabulary of a GPT as in the book."""
    if isinstance(model, ModelShape):
        shape, vocab = model, next(iter(model.embeddings.values()))[0]
        like_ours = model.block_path == "blocks.{}"
    else:
        shape = getattr(model, "config", None)  # type: ignore[assignment]
        vocab = getattr(shape, "vocab_size", 0)
        width = getattr(shape, "n_embd", 0)
        block = sorted(size for path, size in linear_sizes(model).items() if path.startswith("blocks.0."))
        like_ours = block == sorted([(width, width)] * 4 + [(4 * width, width), (width, 4 * width)])
    if not like_ours:
        raise TypeError("activations are predicted for the book's GPT, or a shape with its names: leave out batch")
    return shape.n_embd, shape.n_head, shape.n_layer, vocab
