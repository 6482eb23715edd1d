"""What adapting a model costs at any rank, as straight lines: for a table or a calculator. It knows no preset by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lorabook.adapters.targets import ALL_LINEAR, Target
from lorabook.measure.counting import count_lora
from lorabook.measure.flops import training_flops
from lorabook.measure.memory import METHODS, memory_ledger
from lorabook.measure.presets import ModelShape

QUERY_VALUE, ATTENTION, ALL = "query and value", "attention", "all linear"
_QUERY_VALUE = ("q_proj", "v_proj", "query", "value", "c_attn")


@dataclass(frozen=True)
class Cost:
    """One quantity of one setting: at rank r it is ``at_zero + r * per_rank``.

    Args:
        model: a preset's name.
        targets: "query and value", "attention" or "all linear"; the same for full fine-tuning, which adapts everything.
        method: "full", "lora" or "qlora".
        precision: "bfloat16" or "float32".
        quantity: "weights", "gradients", "optimizer" and "memory", all three together, in bytes; "checkpoint" in bytes on disk, in the
            precision; "trained" in numbers; "operations" in floating-point operations for each token.
        at_zero: what does not grow with the rank.
        per_rank: what each rank adds.

    Example:
        >>> Cost("toy", "all linear", "lora", "float32", "trained", at_zero=0, per_rank=100).at(8)
        800
    """

    model: str
    targets: str
    method: str
    precision: str
    quantity: str
    at_zero: int
    per_rank: int

    def at(self, rank: int) -> int:
        """The quantity at a rank."""
        return self.at_zero + rank * self.per_rank


def costs(shapes: Iterable[ModelShape], precisions: Iterable[str] = ("bfloat16", "float32")) -> list[Cost]:
    """Every quantity for every method, choice of matrices and precision of some models; activations are left out.

    Equal to :func:`~lorabook.measure.memory.memory_ledger`, :func:`~lorabook.measure.counting.count_lora` and
    :func:`~lorabook.measure.flops.training_flops` at every rank. The operations of QLoRA are LoRA's: turning codes into weights is no
    matrix product.

    Args:
        shapes: the models, such as ``PRESETS.values()``.
        precisions: of "bfloat16" and "float32".

    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> from lorabook.measure.presets import PRESETS
        >>> found = costs([PRESETS["llama-2-7b"]])
        >>> [cost.at(8) for cost in found if (cost.targets, cost.method, cost.quantity) == (QUERY_VALUE, "lora", "trained")]
        [4194304, 4194304]
    """
    precisions = tuple(precisions)
    return [
        Cost(shape.name, name, method, precision, quantity, 2 * first[quantity] - second[quantity], second[quantity] - first[quantity])
        for shape in shapes
        for name, targets in preset_targets(shape).items()
        for method in METHODS
        for precision in precisions
        for first, second in [[dict(_quantities(shape, targets, method, precision, rank)) for rank in (1, 2)]]
        for quantity in first
    ]


def preset_targets(shape: ModelShape) -> dict[str, tuple[Target, ...] | str]:
    """Targets of a preset under names that are the same for all; GPT-2 keeps query, key and value in one matrix.

    Example:
        >>> from lorabook.measure.presets import PRESETS
        >>> preset_targets(PRESETS["gpt2"])["query and value"]
        ('attn.c_attn',)
    """
    query_value = tuple(layer.path for layer in shape.block if layer.path.rpartition(".")[2] in _QUERY_VALUE)
    attention = tuple(layer.path for layer in shape.block if "att" in layer.path.partition(".")[0])
    return {QUERY_VALUE: query_value, ATTENTION: attention, ALL: ALL_LINEAR}


def _quantities(shape: ModelShape, targets: tuple[Target, ...] | str, method: str, precision: str, rank: int) -> Iterator[tuple[str, int]]:
    ledger = memory_ledger(shape, method, rank=rank, targets=targets, precision=precision)
    yield from (("weights", ledger.weights), ("gradients", ledger.gradients), ("optimizer", ledger.optimizer), ("memory", ledger.total))
    trained = shape.total if method == "full" else count_lora(shape, targets, rank).trainable
    yield "trained", trained
    yield "checkpoint", trained * (2 if precision == "bfloat16" else 4)
    yield "operations", training_flops(shape, "full" if method == "full" else "lora", rank=rank, targets=targets).total
