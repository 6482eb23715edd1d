"""The tasks at a scale that needs a GPU: full fine-tuning and LoRA, five times as many examples, in batches four times as large.

    python experiments/gpu_tasks.py

Ten times as many steps as in experiments/methods.py; rates, seeds and questions as there. On a GPU products are in bfloat16.

Without a GPU it says so and ends with exit code 2. "--quick --device cpu" runs the same code in a tiny version.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import torch
from fine_tuning import ALL_LINEAR, Sizes, arm_of, lora, place_of, run_method
from methods import FULL_FINE_TUNING
from sweep import Sweep, complete, options

from lorabook.tasks import TASKS

SIZES = Sizes(training_examples=20_000, batch_size=128)
STEPS = 3000
METHODS = (FULL_FINE_TUNING, lora(ALL_LINEAR, 8))


def main() -> None:
    parser = options(__doc__, "gpu_tasks")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    usable = torch.cuda.is_available() if arguments.device == "cuda" else arguments.quick
    if not usable:
        print("gpu_tasks.py: needs a GPU that PyTorch can use; to see on a CPU that the code runs: --quick --device cpu", file=sys.stderr)
        raise SystemExit(2)
    with place_of(arguments, STEPS) as place:
        if not place.quick:
            place = replace(place, sizes=SIZES)
        tasks = list(TASKS)[: 1 if place.quick else None]
        arms = [arm_of(replace(method, name=f"{method.name}, {task}"), task, place) for task in tasks for method in METHODS]
        run = partial(run_method, place=place)
        complete(Sweep("python experiments/gpu_tasks.py", place.path, place.settings, arms, run, run_seconds=90), arguments)


if __name__ == "__main__":
    main()
