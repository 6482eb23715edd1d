"""Continue token sequences with a language model; it knows the model's ``step`` and no tokenizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from lorabook.language.evaluate import evaluation_mode
from lorabook.language.gpt import GPT


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_id: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 128,
) -> list[list[int]]:
    r"""Continue each prompt token by token until the stop token, the limit, or the end of the context.

    At temperature 0 the next token is :math:`\arg\max_v p(v \mid y_{<t})`; at temperature :math:`\tau > 0` it is drawn from
    :math:`\mathrm{softmax}(\text{logits} / \tau)`. Prompts of one length are run together, so nothing is padded.

    Args:
        model: the language model; its training mode is restored afterwards.
        prompts: token ids of each prompt, at least one each.
        max_new_tokens: most tokens to add to a prompt.
        stop_id: the token that ends a text; it is not returned.
        temperature: 0 for greedy decoding.
        generator: source of randomness when sampling, on the model's device; required when ``temperature`` is not 0.
        batch_size: most prompts to run at once.

    Returns:
        The added tokens of each prompt, in the order of the prompts.

    Raises:
        ValueError: an empty prompt, a prompt longer than the context, a negative limit or temperature, or sampling
            without a generator.
    """
    if max_new_tokens < 0 or batch_size < 1:
        raise ValueError(f"max_new_tokens must be at least 0 and batch_size at least 1, got {max_new_tokens} and {batch_size}")
    if not temperature >= 0 or (temperature > 0 and generator is None):
        raise ValueError(f"temperature must be 0, or positive with a generator; got {temperature} and {generator}")
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= model.config.context:
            raise ValueError(f"a prompt has 1 to {model.config.context} tokens, got {len(prompt)} in prompt {index}")
        by_length[len(prompt)].append(index)

    with evaluation_mode(model):
        results: list[list[int]] = [[] for _ in prompts]
        for length, indices in sorted(by_length.items()):
            limit = min(max_new_tokens, model.config.context - length)
            for start in range(0, len(indices), batch_size):
                chosen = indices[start : start + batch_size]
                added = _continue(model, [prompts[i] for i in chosen], limit, stop_id, temperature, generator)
                for index, tokens in zip(chosen, added, strict=True):
                    results[index] = tokens
        return results


def _continue(
    model: GPT,
    prompts: list[Sequence[int]],
    limit: int,
    stop_id: int,
    temperature: float,
    generator: torch.Generator | None,
) -> list[list[int]]:
    """Continue prompts of one length; returns each one's tokens up to its stop token."""
    device = model.token_embedding.weight.device
    ids = torch.tensor([list(prompt) for prompt in prompts], device=device)
    past, columns = None, []
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for _ in range(limit):
        logits, past = model.step(ids, past)
        last = logits[:, -1]  # (B, T, vocab) -> (B, vocab)
        if temperature == 0:
            ids = last.argmax(dim=-1, keepdim=True)
        else:
            ids = torch.multinomial((last / temperature).softmax(dim=-1), 1, generator=generator)
        columns.append(ids)
        finished |= ids[:, 0] == stop_id
        if finished.all():
            break
    rows = torch.cat(columns, dim=1).tolist() if columns else [[] for _ in prompts]
    return [row[: row.index(stop_id)] if stop_id in row else row for row in rows]
