"""A run for other processes to kill: it knows no test."""

from lorabook.training.loop import train
from tests.training.tiny import adapted_gpt, examples, trained

STEPS = 120


def run(path, result=None, steps=STEPS):
    """Train with a checkpoint after every step; write the adapter at the end, if asked to."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    model = adapted_gpt(dropout=0.3)
    train(model, examples(), steps=steps, learning_rate=0.03, batch_size=4, micro_batch_size=3, checkpoint=path, checkpoint_every=1)
    if result is not None:
        save_file(trained(model), result)
