"""What only a GPU can show, on a model of over a billion parameters: the time and memory of a training step, the ledger, the latency.

    python experiments/gpu.py

The model has the shape of one and random weights: what a step costs does not depend on them.

Cost: full fine-tuning and LoRA on float32 weights, LoRA and QLoRA on a base in bfloat16, all with bfloat16 products and AdamW. Full
fine-tuning runs twice, and the two say what is noise. The peak is the largest memory that PyTorch had allocated.

Ledger: what lorabook.measure.memory predicts from shapes beside what the allocator hands out: while the model is built, in the forward
pass, in the backward pass and in the optimizer's first step. Activations are predicted in float32 only.

Latency: a forward pass of GPT-2 medium's shape in bfloat16, as in the LoRA paper's Table 1 and for one token each of several texts: a copy,
the merged and the unmerged model against the plain one, in turns.

Without a GPU it says so and ends with exit code 2. "--quick --device cpu" runs the same code on a tiny shape, without the allocator.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from fine_tuning import ALL_LINEAR
from methods import Q_V
from run_file import Entry
from sweep import Arm, Sweep, complete, options, result_path
from torch import Tensor, nn

from lorabook import LoRAConfig, add_lora, count_parameters, merge_lora, quantize_base
from lorabook.language.gpt import GPT, GPTConfig
from lorabook.language.likelihood import Example, negative_log_likelihood, sequence_example
from lorabook.measure.memory import Ledger, measured_ledger, memory_ledger
from lorabook.training.loop import train

LARGE = GPTConfig(vocab_size=32_768, context=1024, n_layer=24, n_head=16, n_embd=2048)
MEDIUM = GPTConfig(vocab_size=50_257, context=1024, n_layer=24, n_head=16, n_embd=1024)
TINY = GPTConfig(vocab_size=64, context=16, n_layer=2, n_head=2, n_embd=64)
TARGETS: dict[str, tuple[str, ...] | str] = {"all linear": ALL_LINEAR, "q v": Q_V}
WARM_UP_STEPS, TIMED_STEPS, REPEATS = 3, 10, 3
COST_BATCH, LEDGER_BATCH = 8, 2  # texts of the whole context
ROUNDS = 41
TEXTS = ((1, 128), (16, 256), (32, 512), (1, 1), (8, 1), (64, 1))  # texts and their tokens; the first three are the paper's


@dataclass(frozen=True)
class Measurement:
    """Settings of one measurement.

    Args:
        arm: as shown.
        kind: "cost", "ledger" or "latency".
        method: "full", "lora" or "qlora".
        precision: of the weights that are not trained.
        targets: of LoRA, a key of TARGETS.
        rank: of LoRA.
        seed: of the weights.
    """

    arm: str
    kind: str
    method: str
    precision: str
    targets: str | None
    rank: int | None
    seed: int = 0


def measurement(name: str, kind: str, method: str, precision: str, targets: str | None = None, rank: int | None = None) -> Measurement:
    return Measurement(f"{kind}: {name}", kind, method, precision, targets, rank)


MEASUREMENTS = (
    measurement("full", "cost", "full", "float32"),
    measurement("full again", "cost", "full", "float32"),
    measurement("LoRA q v, r = 4, float32 base", "cost", "lora", "float32", "q v", 4),
    measurement("LoRA all linear, r = 16, float32 base", "cost", "lora", "float32", "all linear", 16),
    measurement("LoRA all linear, r = 16, bfloat16 base", "cost", "lora", "bfloat16", "all linear", 16),
    measurement("QLoRA all linear, r = 16", "cost", "qlora", "bfloat16", "all linear", 16),
    measurement("full, float32", "ledger", "full", "float32"),
    measurement("LoRA all linear, r = 16, float32", "ledger", "lora", "float32", "all linear", 16),
    measurement("LoRA q v, r = 4, float32", "ledger", "lora", "float32", "q v", 4),
    measurement("QLoRA all linear, r = 16, float32", "ledger", "qlora", "float32", "all linear", 16),
    measurement("LoRA all linear, r = 16, bfloat16", "ledger", "lora", "bfloat16", "all linear", 16),
    measurement("QLoRA all linear, r = 16, bfloat16", "ledger", "qlora", "bfloat16", "all linear", 16),
    measurement("LoRA q v, r = 4", "latency", "lora", "bfloat16", "q v", 4),
    measurement("LoRA all linear, r = 16", "latency", "lora", "bfloat16", "all linear", 16),
)


@dataclass(frozen=True)
class Place:
    """The device, and how large the measurements are."""

    device: str
    quick: bool

    def shape(self, kind: str) -> GPTConfig:
        """Of the model that this kind of measurement is about."""
        if self.quick:
            return TINY
        return MEDIUM if kind == "latency" else LARGE


def build(run: Measurement, config: GPTConfig, device: str) -> GPT:
    """A model of this shape with random weights, ready to be trained by this method."""
    torch.manual_seed(run.seed)
    with torch.device(device):
        model = GPT(config)
    if run.method == "full":
        return model
    if run.precision == "bfloat16":
        model.bfloat16()  # before the quantization, whose scales stay float32
    if run.method == "qlora":
        quantize_base(model)
    add_lora(model, lora_config(run), generator=torch.Generator().manual_seed(run.seed))
    return model


def lora_config(run: Measurement) -> LoRAConfig:
    assert run.rank is not None
    assert run.targets is not None
    return LoRAConfig(rank=run.rank, alpha=2.0 * run.rank, targets=TARGETS[run.targets])


def measure(run: Measurement, place: Place) -> Entry:
    """One measurement; the memory that it took is free again afterwards."""
    start = time.perf_counter()
    measures: dict[str, Callable[[Measurement, Place], Entry]] = {"cost": cost, "ledger": ledger, "latency": latency}
    result = measures[run.kind](run, place)
    gc.collect()
    if place.device == "cuda":
        torch.cuda.empty_cache()
    return {**result, "shape": asdict(place.shape(run.kind)), "seconds": round(time.perf_counter() - start, 1)}


def cost(run: Measurement, place: Place) -> Entry:
    """Train a few steps to warm up and a few to time, several times; the peak covers all of them, building aside."""
    config, batch_size = place.shape(run.kind), 2 if place.quick else COST_BATCH
    on_gpu, steps = place.device == "cuda", 2 if place.quick else TIMED_STEPS
    model = build(run, config, place.device)
    counts = count_parameters(model)
    weights = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    result: Entry = {"trainable": counts.trainable, "weight_bytes": sum(weights.values()), "batch_size": batch_size, "steps": steps}
    text = random_text(config, batch_size)
    settings: dict[str, Any] = {"learning_rate": 1e-4, "batch_size": batch_size, "precision": "bfloat16", "description": run.arm}
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        train(model, text, steps=WARM_UP_STEPS, **settings)
        logs = [train(model, text, steps=steps, **settings) for _ in range(REPEATS)]
    except torch.cuda.OutOfMemoryError:
        return {**result, "out_of_memory": True}
    result["step_seconds"] = [round(log.seconds / steps, 5) for log in logs]
    result["tokens_per_second"] = round(max(log.tokens / log.seconds for log in logs))
    return {**result, "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None}


def random_text(config: GPTConfig, count: int) -> list[Example]:
    """Random tokens, as many as the context holds in each example."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(config.vocab_size, (count, config.context + 1), generator=generator)
    return [sequence_example(row) for row in rows.tolist()]


def ledger(run: Measurement, place: Place) -> Entry:
    """The ledger predicted from shapes and measured; without a GPU, as on a CPU, by what autograd keeps."""
    config = place.shape(run.kind)
    batch = (LEDGER_BATCH, config.context)
    with torch.device("meta"):
        bare = GPT(config)
    settings: dict[str, Any] = {"batch": batch} if run.precision == "float32" else {}
    if run.method != "full":
        settings |= {"rank": run.rank, "targets": TARGETS[str(run.targets)]}
    predicted = memory_ledger(bare, run.method, precision=run.precision, **settings)

    def loss_of(model: nn.Module) -> Callable[[], Tensor]:
        tokens, labels = (torch.randint(config.vocab_size, batch, device=place.device) for _ in range(2))

        def loss() -> Tensor:
            with torch.autocast(place.device, dtype=torch.bfloat16, enabled=run.precision == "bfloat16"):
                total, count = negative_log_likelihood(model(tokens), labels)
            return total / count

        return loss

    if place.device == "cuda":
        measured, peak = allocated_ledger(partial(build, run, config, place.device), loss_of)
    else:
        model = build(run, config, place.device)
        measured, peak = measured_ledger(model, loss_of(model)), None
    return {"batch": batch, "predicted": asdict(predicted), "measured": asdict(measured), "peak_memory_bytes": peak}


def allocated_ledger(make: Callable[[], nn.Module], loss_of: Callable[[nn.Module], Callable[[], Tensor]]) -> tuple[Ledger, int]:
    """What PyTorch's allocator hands out for one step of AdamW, by kind, and the largest amount at any moment, in bytes."""
    _wake_libraries()
    start = torch.cuda.memory_allocated()

    def grown(since: int) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() - since

    model = make()
    gc.collect()
    weights = grown(start)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)
    loss = loss_of(model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = loss()
    activations = grown(before)
    value.backward()  # type: ignore[no-untyped-call]
    gradients = grown(before)
    optimizer.step()
    moments = grown(before + gradients)
    peak = torch.cuda.max_memory_allocated() - start
    return Ledger(weights, gradients, moments, activations), peak


def _wake_libraries() -> None:
    """The matrix library takes its workspace at the first product of each kind: let it do so before anything is measured."""
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(64, 64, device="cuda", dtype=dtype)
        layer(torch.ones(64, 64, device="cuda", dtype=dtype)).sum().backward()
    gc.collect()
    torch.cuda.synchronize()


def latency(run: Measurement, place: Place) -> Entry:
    """Time of a forward pass relative to the plain model's, side by side: quartiles of the ratios, and the plain model's milliseconds."""
    config = place.shape(run.kind)
    torch.manual_seed(run.seed)
    with torch.device(place.device):
        plain = GPT(config).bfloat16().eval()
    unmerged = copy.deepcopy(plain)
    paths = add_lora(unmerged, lora_config(run), generator=torch.Generator().manual_seed(run.seed))
    for path in paths:
        nn.init.normal_(unmerged.get_parameter(f"{path}.lora_B"), std=0.01)
    unmerged.bfloat16()  # as it would be served: the factors in the type of the weights
    merged = copy.deepcopy(unmerged)
    merge_lora(merged)
    models = {"itself": copy.deepcopy(plain), "merged": merged, "unmerged": unmerged}
    rows = []
    for batch, tokens in ((1, 4), (2, 1)) if place.quick else TEXTS:
        ids = torch.randint(config.vocab_size, (batch, tokens), device=place.device)
        times: dict[str, list[float]] = {name: [] for name in ("plain", *models)}
        for _ in range(2 if place.quick else ROUNDS + 2):  # the first two warm up
            for name, model in {"plain": plain, **models}.items():
                times[name].append(milliseconds(model, ids, place.device))
        pairs = {name: [a / b for a, b in zip(times[name], times["plain"], strict=True)][2 if not place.quick else 0 :] for name in models}
        quartiles = {name: [round(value, 4) for value in statistics.quantiles(found, n=4)] for name, found in pairs.items()}
        rows.append({"batch": batch, "tokens": tokens, "plain_ms": round(statistics.median(times["plain"]), 4), **quartiles})
    return {"rounds": ROUNDS, "layers": len(paths), "texts": rows}


@torch.inference_mode()
def milliseconds(model: nn.Module, ids: Tensor, device: str, calls: int = 5) -> float:
    """Of one forward pass, the mean of a few in a row."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        model(ids)
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / calls


def arm_of(run: Measurement) -> Arm[Measurement]:
    return Arm(run.arm, (), lambda rate, seed, stage: run, lambda entry: 0.0, (0,))


def main() -> None:
    parser = options(__doc__, "gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.set_defaults(workers=0)  # one after the other, for the memory and the time
    arguments = parser.parse_args()
    usable = torch.cuda.is_available() if arguments.device == "cuda" else arguments.quick
    if not usable:
        print("gpu.py: needs a GPU that PyTorch can use; to see on a CPU that the code runs: --quick --device cpu", file=sys.stderr)
        raise SystemExit(2)
    place = Place(arguments.device, arguments.quick)
    settings = {"large": asdict(place.shape("cost")), "medium": asdict(place.shape("latency")), "repeats": REPEATS}
    with result_path(arguments) as path:
        arms = [arm_of(run) for run in MEASUREMENTS]
        run = partial(measure, place=place)
        complete(Sweep("python experiments/gpu.py", path, settings, arms, run, run_seconds=15), arguments)


if __name__ == "__main__":
    main()
