"""``LoRAEmbedding``: LoRA on a table of embeddings, which is a linear layer whose inputs are one-hot. It knows one layer and no model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorabook.adapters.bases import embedding_scale, takes_one_input
from lorabook.adapters.linear import LoRALinear, check_ranges


class LoRAEmbedding(LoRALinear):
    r"""A frozen embedding with a trainable update of low rank.

    .. math:: y_i = W_i + s\, B A_{:,i}, \qquad W_i \text{ the row of token } i

    An embedding that multiplies its rows with an ``embed_scale``, as Gemma's does, multiplies the update with it too. Here A starts
    at zero and B is normal: the column of a token that never occurs stays zero, so its embedding stays.
    ``in_features`` is the vocabulary, ``out_features`` the width, and :meth:`delta_weight` is (width, vocabulary).

    Args:
        base: the embedding, its weight of shape (vocabulary, width). It is frozen.
        rank: r, from 1 to min(vocabulary, width).
        alpha: numerator of the scaling, a finite number above 0.
        rank_stabilized: divide alpha by the square root of r instead of r.
        generator: a CPU generator for B; the global one when None.

    Raises:
        TypeError: the base is not an ``nn.Embedding``.
        ValueError: a rank or alpha outside its range, or an embedding with ``max_norm``, which would rewrite W at each call.

    Source: the reference code of Hu et al. 2021 (microsoft/LoRA).
    Chapter: Variants where they act.

    Example:
        >>> layer = LoRAEmbedding(nn.Embedding(10, 6), rank=2, alpha=8.0)
        >>> layer(torch.tensor([[1, 2, 3]])).shape, layer.lora_A.shape, layer.lora_B.shape
        (torch.Size([1, 3, 6]), torch.Size([2, 10]), torch.Size([6, 2]))
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        *,
        rank_stabilized: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, rank, alpha, rank_stabilized=rank_stabilized, generator=generator)
        self.embedding_dim, self.num_embeddings, self.padding_idx = self.out_features, self.in_features, base.padding_idx

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start afresh: A zero, B normal with mean 0 and standard deviation 1."""
        self.lora_A.zero_()
        self.lora_B.copy_(torch.empty(self.lora_B.shape, dtype=torch.float32).normal_(generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        """Look up.

        Args:
            ids: (...), integers below the size of the vocabulary.

        Returns:
            (..., width), in the dtype of the base.
        """
        y: Tensor = self.base(ids)
        if self.merged or not self.enabled:
            return y
        h = looked_up(self.base, ids, self.lora_A.T)  # (...) -> (..., r)
        return y + F.linear(self.scaling * embedding_scale(self.base) * h, self.lora_B).to(y.dtype)  # (..., r) -> (..., width)

    @staticmethod
    def check_settings(base: nn.Module, rank: int, alpha: float, dropout: float, init: str) -> None:
        """Refuse what the layer cannot be built from; an embedding has no dropout and one way to start."""
        if not isinstance(base, nn.Embedding):
            raise TypeError(f"base must be an nn.Embedding, got {type(base).__name__}")
        if not takes_one_input(base):
            raise ValueError(f"{type(base).__name__} takes more than ids, and LoRAEmbedding does not: leave it out of the targets")
        if base.max_norm is not None:
            raise ValueError("an embedding with max_norm rewrites its weight at each call: set max_norm to None")
        check_ranges(base, rank, alpha, dropout)


def looked_up(base: nn.Module, ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table as the embedding looks up its own: the padding token's takes no gradient, frequent ones' are shared out.

    Example:
        >>> looked_up(nn.Embedding(3, 4), torch.tensor([2]), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
        tensor([[4., 5.]])
    """
    padding, by_frequency = base.padding_idx, base.scale_grad_by_freq
    return F.embedding(ids, table, padding_idx=padding, scale_grad_by_freq=by_frequency)  # type: ignore[arg-type]
