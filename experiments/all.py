"""Every experiment, one after the other, in the order in which they need each other.

    python -m experiments.all            makes every result again; what a result file already holds is not repeated
    python -m experiments.all --quick    shows in a few minutes that every script still runs; writes only to temporary files

Pre-training (experiments/pretrain.py) is not among them: all results are about the backbone as it is. A script whose needs are not met
(a GPU) is left out and named. Ends with an error if any script fails.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Script:
    """One experiment.

    Args:
        command: the script of this folder and its arguments.
        minutes: expected, on two cores, and on a GPU where one is needed.
        quick: what is added for --quick; OUT stands for a temporary file.
        needs_gpu: whether it is left out where there is none; not with --quick.
    """

    command: str
    minutes: int
    quick: str = "--quick"
    needs_gpu: bool = False


SCRIPTS = (
    Script("methods.py --task text_to_sql", 85),
    Script("methods.py --task table_to_text", 25),
    Script("methods.py --task reading", 30),
    Script("matrices.py", 150),
    Script("adapters.py", 15),
    Script("spectra.py", 10),
    Script("intruders.py", 10),
    Script("forgetting.py", 15),
    Script("intrinsic_dimension.py", 50),
    Script("domain_shift.py", 30),
    Script("minilm.py", 10),
    Script("peft_agreement.py --number 1000 --seeds 0 10000 20000", 15, "--number 5 --seeds 0 --out OUT"),
    Script("fuzz_adapters.py --number 20000", 5, "--number 50 --out OUT"),
    Script("gpu.py", 5, "--quick --device cpu", needs_gpu=True),
    Script("gpu_tasks.py --workers 6", 15, "--quick --device cpu", needs_gpu=True),
)


def line_of(script: Script, quick: bool, out: str = "OUT") -> list[str]:
    """The arguments of Python that run the script."""
    found = shlex.split(f"experiments/{script.command} {script.quick if quick else ''}")
    return [out if word == "OUT" else word for word in found]


def run(script: Script, quick: bool, folder: str) -> int:
    """Run one script to its end; returns its exit code."""
    out = str(Path(folder) / f"{script.command.split('.')[0]}.json")
    command = line_of(script, quick, out)
    print(f"\n=== python {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    environment = os.environ | {"TQDM_DISABLE": "1", **({"OMP_NUM_THREADS": "1"} if quick else {})}
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False, env=environment).returncode  # noqa: S603
    print(f"=== {'done' if code == 0 else f'FAILED with exit code {code}'} in {time.perf_counter() - start:.0f} s", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny versions, written to temporary files")
    parser.add_argument("--list", action="store_true", help="print the list and end")
    arguments = parser.parse_args()
    left_out = [script for script in SCRIPTS if script.needs_gpu and not (arguments.quick or torch.cuda.is_available())]
    chosen = [script for script in SCRIPTS if script not in left_out]
    for script in chosen:
        expected = "" if arguments.quick else f"   about {script.minutes} min on two cores"
        print(f"python {shlex.join(line_of(script, arguments.quick))}{expected}")
    for script in left_out:
        print(f"left out: {script.command}, which needs a GPU")
    if not arguments.quick:
        print(f"together about {sum(script.minutes for script in chosen) / 60:.1f} h, less what is made already", flush=True)
    if arguments.list:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        failed = [script.command for script in chosen if run(script, arguments.quick, folder) != 0]
    print(f"\nfailed: {', '.join(failed)}" if failed else f"\nall {len(chosen)} experiments ran", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
