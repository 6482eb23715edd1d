"""What needs a GPU: memory and time of full fine-tuning, LoRA and QLoRA on a model of over a billion parameters; the tasks at scale.

    python experiments/gpu.py

The large model has the shape of one and random weights: what a step costs does not depend on them. Full fine-tuning is the usual mixed
precision, float32 weights with bfloat16 products and AdamW; LoRA stands on a base in bfloat16, QLoRA on one in NF4,
both on all linear layers. Memory is the largest that PyTorch had allocated (torch.cuda.max_memory_allocated). A method that does not fit
says so in the result.

The tasks at scale: full fine-tuning and LoRA on all three tasks with ten times as many steps of four times as many examples.

Without a GPU it says so and ends with exit code 2. "--quick --device cpu" runs the same code on a tiny shape; memory is then not measured.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from fine_tuning import ALL_LINEAR, FineTuning, Method, Place, Sizes, arm_of, lora, place_of, run_method
from methods import FULL_FINE_TUNING
from run_file import Entry
from sweep import TEST, Arm, Sweep, complete, options

from lorabook import LoRAConfig, add_lora, count_parameters, quantize_base
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import Example, sequence_example
from lorabook.tasks import TASKS
from lorabook.training.loop import train

SHAPE = GPTConfig(vocab_size=32_768, context=1024, n_layer=24, n_head=16, n_embd=2048)
TINY = GPTConfig(vocab_size=64, context=16, n_layer=2, n_head=2, n_embd=64)
SCALE = Sizes(training_examples=20_000, batch_size=128)
TASK_STEPS = 3000
RANK = 16
WARM_UP_STEPS, TIMED_STEPS = 3, 10


@dataclass(frozen=True)
class CostRun:
    """Settings of one measurement of memory and time."""

    arm: str
    method: str
    device: str
    batch_size: int
    steps: int
    seed: int = 0
    stage: str = TEST


def large_model(method: str, config: GPTConfig, device: str) -> GPT:
    """A model of this shape with random weights, ready to be trained by this method."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(config)
    if method == "full":
        return model
    model.bfloat16()  # before the quantization, whose scales stay float32
    if method == "qlora":
        quantize_base(model)
    add_lora(model, LoRAConfig(rank=RANK, alpha=2.0 * RANK, targets=ALL_LINEAR), generator=torch.Generator().manual_seed(0))
    return model


def run_cost(run: CostRun, config: GPTConfig) -> Entry:
    """Build, train a few steps to warm up and a few to time; the peak covers all of them, building aside."""
    start, on_gpu = time.perf_counter(), run.device == "cuda"
    model = large_model(run.method, config, run.device)
    counts = count_parameters(model)
    weights = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    result: Entry = {"shape": asdict(config), "trainable": counts.trainable, "parameters": _parameters(config)}
    result["weight_bytes"] = sum(weights.values())
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    settings: dict[str, Any] = {"learning_rate": 1e-4, "batch_size": run.batch_size, "precision": "bfloat16", "description": run.arm}
    try:
        train(model, random_text(config, run.batch_size), steps=WARM_UP_STEPS, **settings)
        log = train(model, random_text(config, run.batch_size), steps=run.steps, **settings)
        result |= {"step_seconds": log.seconds / run.steps, "tokens_per_second": log.tokens / log.seconds}
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None
    except torch.cuda.OutOfMemoryError:
        result["out_of_memory"] = True
    del model
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def random_text(config: GPTConfig, count: int) -> list[Example]:
    """Random tokens, as many as the context holds in each example."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(config.vocab_size, (count, config.context + 1), generator=generator)
    return [sequence_example(row) for row in rows.tolist()]


def _parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return count_parameters(GPT(config)).total


def run_either(run: CostRun | FineTuning, place: Place, config: GPTConfig) -> Entry:
    """A measurement or a fine-tuning."""
    return run_cost(run, config) if isinstance(run, CostRun) else run_method(run, place)


def arms_of(place: Place, device: str) -> list[Arm[CostRun | FineTuning]]:
    """The measurements, then the tasks."""
    batch_size, steps = (2, 2) if place.quick else (8, TIMED_STEPS)

    def cost(method: str, name: str) -> Arm[CostRun | FineTuning]:
        def make(_: float, seed: int, stage: str) -> CostRun:
            return CostRun(name, method, device, batch_size, steps, seed, stage)

        return Arm(name, (), make, lambda entry: 0.0, (0,))

    costs = [cost("full", "full fine-tuning, cost"), cost("lora", "LoRA, cost"), cost("qlora", "QLoRA, cost")]
    methods: tuple[Method, ...] = (FULL_FINE_TUNING, lora(ALL_LINEAR, 8))
    tasks = list(TASKS)[: 1 if place.quick else None]
    named = [(task, replace(method, name=f"{method.name}, {task}")) for task in tasks for method in methods]
    at_scale: list[Any] = [arm_of(method, task, place) for task, method in named]
    return [*costs, *at_scale]


def main() -> None:
    parser = options(__doc__, "gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.set_defaults(workers=0)  # one after the other, for the memory and the time
    arguments = parser.parse_args()
    usable = torch.cuda.is_available() if arguments.device == "cuda" else arguments.quick
    if not usable:
        print("gpu.py: needs a GPU that PyTorch can use; to see on a CPU that the code runs: --quick --device cpu", file=sys.stderr)
        raise SystemExit(2)
    with place_of(arguments, TASK_STEPS) as place:
        if not place.quick:
            place = replace(place, sizes=SCALE)
        config = TINY if place.quick else SHAPE
        settings = {**place.settings, "shape": asdict(config), "rank": RANK}
        run = partial(run_either, place=place, config=config)
        arms = arms_of(place, arguments.device)
        complete(Sweep("python experiments/gpu.py", place.path, settings, arms, run, run_seconds=240), arguments)


if __name__ == "__main__":
    main()
