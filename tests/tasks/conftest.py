"""Two models that need no training: one continues what it was told to, one is random."""

from types import SimpleNamespace

import pytest
import torch

from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks import TASKS


class Recall(torch.nn.Module):
    """Continues every prompt as it was told to."""

    def __init__(self, texts, vocab_size):
        super().__init__()
        self.texts, self.vocab_size = texts, vocab_size
        self.config = SimpleNamespace(context=max(map(len, texts)))
        self.token_embedding = torch.nn.Embedding(1, 1)

    def step(self, ids, past):
        seen = ids if past is None else torch.cat((past, ids), dim=1)
        following = [next(text[len(row)] for text in self.texts if text[: len(row)] == row) for row in seen.tolist()]
        return torch.nn.functional.one_hot(torch.tensor(following), self.vocab_size)[:, None], seen


@pytest.fixture(scope="session")
def tokenizer():
    drawn = [example for task in TASKS.values() for example in task.examples("train", 40, seed=9)]
    return BytePairTokenizer.train([example.prompt + example.target for example in drawn], 400)


@pytest.fixture
def answering(tokenizer):
    """Make a model that gives one answer to each prompt, and then the end token."""

    def make(examples, answers):
        texts = [
            [*tokenizer.encode(example.prompt), *tokenizer.encode(" " + answer), *[tokenizer.end_id] * 200]
            for example, answer in zip(examples, answers, strict=True)
        ]
        return Recall(texts, tokenizer.vocab_size)

    return make


@pytest.fixture(scope="session")
def random_gpt(tokenizer):
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, context=256, n_layer=1, n_head=2, n_embd=6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model.requires_grad_(False)
