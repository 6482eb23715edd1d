"""Time LoRALinear against its base on this machine, as ratios, with the base against itself as the noise floor.

python experiments/bench_linear.py
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lorabook import LoRALinear, best_device

_OUT, _IN, _RANK, _TOKENS = 1024, 768, 8, 1024
_ROUNDS = 30


def seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    device = best_device()
    torch.manual_seed(0)
    x = torch.randn(_TOKENS, _IN, device=device, requires_grad=True)
    base = nn.Linear(_IN, _OUT).to(device)
    trained = nn.Linear(_IN, _OUT).to(device)
    adapted = LoRALinear(nn.Linear(_IN, _OUT).to(device), rank=_RANK, alpha=16.0)
    merged = LoRALinear(nn.Linear(_IN, _OUT).to(device), rank=_RANK, alpha=16.0)
    merged.merge()

    def forward(layer: nn.Module) -> Callable[[], object]:
        def step() -> Tensor:
            with torch.no_grad():
                output: Tensor = layer(x)
            return output

        return step

    def backward(layer: nn.Module) -> Callable[[], object]:
        return lambda: layer(x).sum().backward()

    cases = {
        "forward": (forward(base), {"itself": forward(base), "merged": forward(merged), "LoRA": forward(adapted)}),
        "forward and backward": (backward(trained), {"itself": backward(trained), "LoRA": backward(adapted)}),
    }
    print(f"{device.type}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python {platform.python_version()}")
    print(f"{_TOKENS} tokens through a {_OUT}x{_IN} layer, rank {_RANK}; ratios to the plain layer, median and range of {_ROUNDS} rounds")
    for name, (plain, others) in cases.items():
        for other in others.values():
            other()
        for label, other in others.items():
            ratios = sorted(seconds(other, device) / seconds(plain, device) for _ in range(_ROUNDS))
            print(f"  {name:22} {label:8} {statistics.median(ratios):.2f}  ({ratios[2]:.2f} to {ratios[-3]:.2f})")


if __name__ == "__main__":
    main()
