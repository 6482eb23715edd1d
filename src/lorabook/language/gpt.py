"""A small GPT, read line by line in the book; it knows nothing of adapters.

Every projection is an ``nn.Linear`` of its own (``q_proj``, ``k_proj``, ...), so that an adapter can be put on any one of them
by name. The output layer shares its weight with the token embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeyValues = tuple[Tensor, Tensor]  # keys and values of one block, each (B, n_head, T, head_dim)


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a :class:`GPT`.

    Args:
        vocab_size: number of tokens in the vocabulary.
        context: longest sequence, in tokens.
        n_layer: number of blocks.
        n_head: attention heads per block; divides ``n_embd``.
        n_embd: width of the residual stream.

    Raises:
        ValueError: a size below 1, or ``n_embd`` not a multiple of ``n_head``.

    Chapter: Fine-tuning with LoRA.
    """

    vocab_size: int
    context: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head, got {self.n_embd} and {self.n_head}")


class Attention(nn.Module):
    """Causal self-attention: each position reads itself and the positions before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.q_proj = nn.Linear(config.n_embd, config.n_embd)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """Map (B, T, n_embd) to the same shape; also return the keys and values, those of the past in front."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        # With a past, the one new position may read everything, so no mask is needed.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        y = y.transpose(1, 2).flatten(2)  # (B, n_head, T, head_dim) -> (B, T, n_embd)
        return self.o_proj(y), (k, v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_head, -1).transpose(1, 2)  # (B, T, n_embd) -> (B, n_head, T, head_dim)


class Block(nn.Module):
    """Attention, then a two-layer perceptron; each adds its output to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd)
        self.up_proj = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """As :meth:`Attention.forward`."""
        attended, present = self.attention(self.attention_norm(x), past)
        x = x + attended
        x = x + self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x))))
        return x, present


class GPT(nn.Module):
    r"""Autoregressive transformer: logits of :math:`p_\Theta(y_t \mid y_{<t})` at every position.

    Args:
        config: the shape of the model.

    Source: Radford et al. 2019 (GPT-2): pre-norm blocks, learned positions, tied output layer.
    Chapter: Fine-tuning with LoRA.

    Example:
        >>> model = GPT(GPTConfig(vocab_size=11, context=8, n_layer=1, n_head=2, n_embd=6))
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 11])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits for the next token at every position.

        Args:
            input_ids: token ids, (B, T) with T at most ``config.context``.

        Returns:
            Logits, (B, T, vocab_size).

        Raises:
            ValueError: the sequence is longer than the context.
        """
        logits, _ = self.step(input_ids, None)
        return logits

    def step(self, input_ids: Tensor, past: list[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        """Like :meth:`forward`, continuing from the keys and values of earlier positions.

        Args:
            input_ids: new token ids, (B, T); T is 1 when there is a past.
            past: keys and values of each block, as an earlier call returned them, or None at the start.

        Returns:
            Logits of the new positions, (B, T, vocab_size), and the keys and values of all positions so far.

        Raises:
            ValueError: the sequence would outgrow the context, or several tokens are added to a past.
        """
        seen = 0 if past is None else past[0][0].shape[2]
        length = input_ids.shape[1]
        if seen + length > self.config.context:
            raise ValueError(f"a sequence holds at most {self.config.context} tokens, got {seen + length}: shorten it")
        if seen and length != 1:
            raise ValueError(f"continue a sequence one token at a time, got {length}")
        positions = torch.arange(seen, seen + length, device=input_ids.device)
        x = self.token_embedding(input_ids) + self.position_embedding(positions)  # (B, T) -> (B, T, n_embd)
        present = []
        for index, block in enumerate(self.blocks):
            x, key_values = block(x, None if past is None else past[index])
            present.append(key_values)
        return self.lm_head(self.final_norm(x)), present
