"""Shapes of well-known models: every matrix by its Hugging Face name, nothing allocated. It knows no adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Matrix:
    """One linear layer's sizes.

    Args:
        path: its name in the model, or within a block.
        d: out_features.
        k: in_features.
        bias: whether the layer has one, of d numbers.
    """

    path: str
    d: int
    k: int
    bias: bool = False


@dataclass(frozen=True)
class ModelShape:
    """What a transformer is made of, in numbers.

    Args:
        name: the preset's key.
        n_layer: number of blocks, all alike.
        n_head: attention heads, of queries.
        n_embd: width of the residual stream.
        block_path: path of a block, with {} for its number.
        block: the linear layers of one block.
        outside: the linear layers outside the blocks.
        head: path of the output layer that turns states into logits; "" for an encoder.
        tied: whether the head shares its weight with the token embedding, so that it counts once.
        embeddings: path, and (num_embeddings, embedding_dim), of each embedding.
        block_norms: numbers in the norms of one block.
        outside_norms: numbers in the other norms.

    Chapter: Counting: parameters, memory, FLOPs.

    Example:
        >>> shape = PRESETS["llama-2-7b"]
        >>> shape.total
        6738415616
        >>> next(shape.linear_layers())
        Matrix(path='model.layers.0.self_attn.q_proj', d=4096, k=4096, bias=False)
    """

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    block_path: str
    block: tuple[Matrix, ...]
    outside: tuple[Matrix, ...]
    head: str
    tied: bool
    embeddings: Mapping[str, tuple[int, int]]
    block_norms: int
    outside_norms: int

    def linear_layers(self) -> Iterator[Matrix]:
        """Every linear layer under its whole path, the blocks' first."""
        for index in range(self.n_layer):
            for layer in self.block:
                yield Matrix(f"{self.block_path.format(index)}.{layer.path}", layer.d, layer.k, layer.bias)
        yield from self.outside

    @property
    def total(self) -> int:
        """Number of parameters, a tied head counted once."""
        linear = sum(
            layer.d * layer.k + layer.d * layer.bias for layer in self.linear_layers() if not (self.tied and layer.path == self.head)
        )
        tables = sum(rows * columns for rows, columns in self.embeddings.values())
        return linear + tables + self.n_layer * self.block_norms + self.outside_norms


def _gpt2(name: str, n_layer: int, n_head: int, width: int) -> ModelShape:
    """GPT-2, whose query, key and value are one fused matrix, c_attn."""
    block = (
        Matrix("attn.c_attn", 3 * width, width, True),
        Matrix("attn.c_proj", width, width, True),
        Matrix("mlp.c_fc", 4 * width, width, True),
        Matrix("mlp.c_proj", width, 4 * width, True),
    )
    embeddings = {"transformer.wte": (50257, width), "transformer.wpe": (1024, width)}
    head = (Matrix("lm_head", 50257, width),)
    return ModelShape(name, n_layer, n_head, width, "transformer.h.{}", block, head, "lm_head", True, embeddings, 4 * width, 2 * width)


def _gpt3(name: str, n_layer: int, n_head: int, width: int) -> ModelShape:
    """GPT-3, which was never published as a file: GPT-2's shape, with the paper's four attention matrices apart, named as in our GPT."""
    attention = tuple(Matrix(f"attention.{name}", width, width, True) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    block = (*attention, Matrix("up_proj", 4 * width, width, True), Matrix("down_proj", width, 4 * width, True))
    embeddings = {"token_embedding": (50257, width), "position_embedding": (2048, width)}
    head = (Matrix("lm_head", 50257, width),)
    return ModelShape(name, n_layer, n_head, width, "blocks.{}", block, head, "lm_head", True, embeddings, 4 * width, 2 * width)


def _roberta(name: str, n_layer: int, n_head: int, width: int) -> ModelShape:
    """RoBERTa as an encoder with its pooler, without a language-model head."""
    attention = tuple(Matrix(f"attention.self.{name}", width, width, True) for name in ("query", "key", "value"))
    block = (
        *attention,
        Matrix("attention.output.dense", width, width, True),
        Matrix("intermediate.dense", 4 * width, width, True),
        Matrix("output.dense", width, 4 * width, True),
    )
    embeddings = {
        "embeddings.word_embeddings": (50265, width),
        "embeddings.position_embeddings": (514, width),
        "embeddings.token_type_embeddings": (1, width),
    }
    pooler = (Matrix("pooler.dense", width, width, True),)
    return ModelShape(name, n_layer, n_head, width, "encoder.layer.{}", block, pooler, "", False, embeddings, 4 * width, 2 * width)


def _llama(
    name: str, n_layer: int, width: int, heads: tuple[int, int], mlp_width: int, vocab: int, *, qkv_bias: bool = False
) -> ModelShape:
    """Llama and its kin: heads are (of queries, of keys and values), the latter fewer where queries share them."""
    kv_width = width // heads[0] * heads[1]
    block = (
        Matrix("self_attn.q_proj", width, width, qkv_bias),
        Matrix("self_attn.k_proj", kv_width, width, qkv_bias),
        Matrix("self_attn.v_proj", kv_width, width, qkv_bias),
        Matrix("self_attn.o_proj", width, width),
        Matrix("mlp.gate_proj", mlp_width, width),
        Matrix("mlp.up_proj", mlp_width, width),
        Matrix("mlp.down_proj", width, mlp_width),
    )
    head = (Matrix("lm_head", vocab, width),)
    return ModelShape(
        name,
        n_layer,
        heads[0],
        width,
        "model.layers.{}",
        block,
        head,
        "lm_head",
        False,
        {"model.embed_tokens": (vocab, width)},
        2 * width,
        width,
    )


PRESETS: Mapping[str, ModelShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            _gpt2("gpt2", 12, 12, 768),
            _gpt2("gpt2-medium", 24, 16, 1024),
            _gpt2("gpt2-large", 36, 20, 1280),
            _gpt2("gpt2-xl", 48, 25, 1600),
            _gpt3("gpt3-175b", 96, 96, 12288),
            _roberta("roberta-base", 12, 12, 768),
            _roberta("roberta-large", 24, 16, 1024),
            _llama("llama-2-7b", 32, 4096, (32, 32), 11008, 32000),
            _llama("llama-2-13b", 40, 5120, (40, 40), 13824, 32000),
            _llama("llama-2-70b", 80, 8192, (64, 8), 28672, 32000),
            _llama("llama-3-8b", 32, 4096, (32, 8), 14336, 128256),
            _llama("llama-3-70b", 80, 8192, (64, 8), 28672, 128256),
            _llama("mistral-7b", 32, 4096, (32, 8), 14336, 32000),  # v0.1
            _llama("mistral-7b-v0.3", 32, 4096, (32, 8), 14336, 32768),
            _llama("qwen2.5-7b", 28, 3584, (28, 4), 18944, 152064, qkv_bias=True),
        )
    }
)
"""The shapes by name. Sources: the models' published configurations; Brown et al. 2020, table 2.1, for GPT-3."""
