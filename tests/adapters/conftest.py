"""A model with a name that is part of another, a layer of no adapter, and a head tied to the embedding."""

import pytest
import torch
from torch import nn


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(6, 4)
        self.proj = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(x + self.proj(torch.tanh(self.q_proj(x))))


class TiedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.blocks = nn.Sequential(Branch(), Branch())
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.blocks(self.embedding(ids)))


@pytest.fixture
def make_model():
    def make(seed=0):
        generator = torch.Generator().manual_seed(seed)
        model = TiedModel()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=generator)
        return model

    return make


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def ids():
    return torch.tensor([[1, 5, 2], [7, 0, 8]])
