"""A model small enough to be trained hundreds of times in a test, and examples whose targets are of very unequal length."""

import torch

from lorabook import LoRAConfig, add_lora
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import conditional_example

VOCAB_SIZE = 13
SETTINGS = {"steps": 12, "learning_rate": 0.03, "batch_size": 5}


def adapted_gpt(dropout=0.0, seed=0, **config):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=VOCAB_SIZE, context=24, n_layer=2, n_head=2, n_embd=6))
        for parameter in model.parameters():
            if parameter.dim() > 1:  # wider than a GPT begins, so that no gradient is lost in rounding
                torch.nn.init.normal_(parameter, std=0.4)
        add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets="all-linear", dropout=dropout, **config))
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):  # away from zero, so that A has a gradient
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def examples(count=11):
    """Targets of one token and of many in turn; prompts of one to three."""
    made = []
    for index in range(count):
        prompt = [(index * step + 1) % VOCAB_SIZE for step in range(1, 2 + index % 3)]
        target = [(index + 3 * step) % VOCAB_SIZE for step in range(1 if index % 2 else 16)]
        made.append(conditional_example(prompt, target))
    return made


def trained(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
