"""A sweep whose runs are arithmetic, as a script: tests run it, kill it and run it again.

The score is highest at the rate 0.02. Each run leaves a mark in a folder, by which a repeated one would show.
"""

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from sweep import Arm, Sweep, complete, options


@dataclass(frozen=True)
class ToyRun:
    arm: str
    learning_rate: float
    seed: int
    stage: str


def run(settings, marks, pause):
    time.sleep(pause)
    with (marks / "runs.txt").open("a") as file:
        file.write(f"{settings.arm} {settings.learning_rate:g} {settings.seed} {settings.stage} {os.getpid()}\n")
    score = 1 / (1 + abs(settings.learning_rate - 0.02) * 10)
    return {"validation": {"accuracy": score}, "seconds": pause}


def toy(path, marks, *, pause=0.0, arms=("first", "second"), **others):
    made = [Arm(name, (0.01, 0.02, 0.04), partial(ToyRun, name), lambda entry: entry["validation"]["accuracy"]) for name in arms]
    settings = others.pop("settings", {"steps": 7})
    return Sweep("python experiments/methods.py", path, settings, made, partial(run, marks=marks, pause=pause), pause, **others)


def arguments(*words):
    return options("toy", "toy").parse_args(["--workers", "0", *words])


if __name__ == "__main__":
    complete(toy(Path(sys.argv[1]), Path(sys.argv[2]), pause=0.1), options("toy", "toy").parse_args(["--workers", "2"]))
