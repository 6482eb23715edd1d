"""A sweep: many runs, made by several processes, each kept in the result file as soon as it is done. It knows no task and no model.

A run's settings are a frozen dataclass with the fields ``arm``, ``learning_rate``, ``seed`` and ``stage`` among others; its outcome is a
dict. A plan says, from the runs made so far, which are wanted next: rates are tuned first, and a plan needs no state but the file.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from provenance import RESULTS, WEIGHTS, ResultError, device_name, file_sha256
from run_file import Entry, RunFile

TUNING, TEST = "tuning", "test"
SEEDS = (0, 1, 2)  # the first chooses the rates
_MOST_EXTENSIONS = 3


class Settings(Protocol):
    """What a run is made with: a frozen dataclass, whose fields JSON can hold."""

    @property
    def arm(self) -> str:
        """The name by which --only chooses, and which is printed."""

    @property
    def seed(self) -> int:
        """Of whatever is random in the run."""


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Arm(Generic[S]):
    """One thing to compare, at its own best rate.

    Args:
        name: as in its runs' ``arm``.
        rates: learning rates to try first, rising; none where nothing is trained.
        make: settings from a rate, a seed and a stage: "tuning" scores on validation only, "test" on everything.
        score: of a run, on validation.
        seeds: the first chooses the rate, all run at it.
    """

    name: str
    rates: tuple[float, ...]
    make: Callable[[float, int, str], S]
    score: Callable[[Entry], float]
    seeds: tuple[int, ...] = SEEDS

    def wanted(self, find: Callable[[S], Entry | None]) -> tuple[list[S], int]:
        """The runs that are wanted as far as is known, and how many more will follow."""
        if not self.rates:
            return [self.make(0.0, seed, TEST) for seed in self.seeds], 0
        runs = [self.make(rate, self.seeds[0], TUNING) for rate in self.rates]
        rates, scores = list(self.rates), list[float]()
        while True:
            entries = [find(run) for run in runs]
            scores = [self.score(entry) for entry in entries if entry is not None]
            if len(scores) < len(runs):
                return runs, len(self.seeds)
            further = self._beyond(dict(zip(rates, scores, strict=True)))
            if further is None:
                break
            rates.append(further)
            runs.append(self.make(further, self.seeds[0], TUNING))
        best = best_rate(dict(zip(rates, scores, strict=True)))
        return runs + [self.make(best, seed, TEST) for seed in self.seeds], 0

    def _beyond(self, tried: Mapping[float, float]) -> float | None:
        """A rate one step beyond the best, when that is at the edge and better than its neighbour; at most three such rates."""
        if len(tried) < 2 or len(tried) >= len(self.rates) + _MOST_EXTENSIONS:
            return None
        rates, best = sorted(tried), best_rate(tried)
        edge, neighbour = (rates[0], rates[1]) if best == rates[0] else (rates[-1], rates[-2])
        if best != edge or tried[edge] <= tried[neighbour]:
            return None
        return float(f"{edge * edge / neighbour:.3g}")


def best_rate(tried: Mapping[float, float]) -> float:
    """The rate with the highest score; the smallest of those that tie."""
    return min(tried, key=lambda rate: (-tried[rate], rate))


@dataclass(frozen=True)
class Sweep(Generic[S]):
    """An experiment as the engine sees it.

    Args:
        command: that makes its result file.
        path: of the result file.
        settings: what all runs share.
        arms: in the order in which they are to be made.
        run: makes one run; importable by name, since other processes call it.
        run_seconds: expected, for the estimate before the first run.
        reuse: other result files in which runs of the same settings may lie.
        summarize: what the runs together say.
    """

    command: str
    path: Path
    settings: Mapping[str, Any]
    arms: Sequence[Arm[S]]
    run: Callable[[S], Mapping[str, Any]]
    run_seconds: float
    reuse: tuple[Path, ...] = ()
    summarize: Callable[[Sequence[Entry]], Mapping[str, Any]] | None = None


def options(description: str | None, stem: str) -> argparse.ArgumentParser:
    """The command line that all sweeps share; the result goes to assets/results/<stem>.json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny version, written to a temporary file: shows that everything runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread (default 2); 0: in this process")
    parser.add_argument("--only", default="", metavar="REGEX", help="make only the arms whose name this matches somewhere")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever the result file holds and has been trained")
    parser.add_argument("--out", type=Path, help=f"result file (default assets/results/{stem}.json)")
    parser.set_defaults(stem=stem)
    return parser


@contextmanager
def result_path(arguments: argparse.Namespace) -> Iterator[Path]:
    """Where the result goes: as told, into a temporary folder for --quick, else into assets/results."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if arguments.quick else RESULTS
        yield arguments.out or place / f"{arguments.stem}.json"


def complete(sweep: Sweep[S], arguments: argparse.Namespace) -> RunFile:
    """Make every run of the sweep that its file lacks.

    Raises:
        SystemExit: the file holds runs that do not belong to this sweep; or the sweep was told to stop.
    """
    backbone = file_sha256(WEIGHTS / "backbone.safetensors")
    try:
        file = RunFile(sweep.path, sweep.command, sweep.settings, backbone, fresh=arguments.fresh)
        arms = [arm for arm in sweep.arms if re.search(arguments.only, arm.name)]
        if not arms:
            raise ResultError(f"--only {arguments.only!r} matches none of: {', '.join(arm.name for arm in sweep.arms)}")
        _take_over(file, sweep, arms)
    except ResultError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print_plan(sweep, file, arms, arguments.workers)
    _make_all(sweep, file, arms, arguments.workers)
    _write(sweep, file)
    return file


def print_plan(sweep: Sweep[S], file: RunFile, arms: Sequence[Arm[S]], workers: int) -> None:
    """Say which arms there are, how many runs are left and how long they are expected to take."""
    for arm in arms:
        rates = f"rates {', '.join(f'{rate:g}' for rate in arm.rates)}, then " if arm.rates else ""
        print(f"{arm.name}: {rates}seeds {', '.join(map(str, arm.seeds))}")
    left = _left(file, arms)
    hours = left * sweep.run_seconds / max(1, workers) / 3600
    print(f"{len(file.entries)} runs made, about {left} to make, {hours:.1f} h at {workers} workers (more where rates go on)", flush=True)


def _take_over(file: RunFile, sweep: Sweep[S], arms: Sequence[Arm[S]]) -> None:
    for other in sweep.reuse:
        try:
            while any(file.take_over(other, arm.wanted(file.find)[0]) for arm in arms):  # each tuned rate lets more be wanted
                pass
        except ResultError as error:
            print(f"nothing is taken over: {error}")


def _left(file: RunFile, arms: Sequence[Arm[S]]) -> int:
    wanted = [arm.wanted(file.find) for arm in arms]
    return sum(later + sum(file.find(run) is None for run in runs) for runs, later in wanted)


def _write(sweep: Sweep[S], file: RunFile) -> None:
    whole = _left(file, sweep.arms) == 0
    file.write(complete=whole, summary=sweep.summarize(file.entries) if whole and sweep.summarize else None)


def _make_all(sweep: Sweep[S], file: RunFile, arms: Sequence[Arm[S]], workers: int) -> None:
    start, made = time.perf_counter(), 0
    with _pool(workers) as pool:
        running: dict[Future[Mapping[str, Any]], S] = {}
        while True:
            wanted = [run for arm in arms for run in arm.wanted(file.find)[0] if file.find(run) is None and run not in running.values()]
            for run in wanted[: max(1, workers) - len(running)]:
                running[pool.submit(sweep.run, run)] = run
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                _check_backbone(file)
                run = running.pop(future)
                entry = file.add(run, future.result(), pool.device)
                made += 1
                _write(sweep, file)
                minutes = _left(file, arms) * (time.perf_counter() - start) / made / 60
                print(f"{describe(entry)}   {len(file.entries)} runs made, about {minutes:.0f} min left", flush=True)


def _check_backbone(file: RunFile) -> None:
    """A run may have begun with weights that were replaced meanwhile: then nobody knows which it is about."""
    if file_sha256(WEIGHTS / "backbone.safetensors") != file.backbone:
        print(f"{file.path.name}: the backbone was replaced during the sweep; the runs kept are of the old one", file=sys.stderr)
        raise SystemExit(2)


def describe(entry: Entry) -> str:
    """One line about a run: its arm, rate, seed and scores."""
    scores = {key: value for key, value in entry.items() if key.startswith(("validation", "test", "unseen")) and value is not None}
    shown = " ".join(f"{key} {next(iter(value.values())) if isinstance(value, dict) else value:.3f}" for key, value in scores.items())
    return f"{entry['arm']:32} rate {entry.get('learning_rate', 0):<8g} seed {entry['seed']} {shown:40} {entry['seconds']:.0f} s"


class _Pool:
    """Processes of one thread each; or none, and then runs are made where they are asked for."""

    def __init__(self, workers: int) -> None:
        self.processes = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) if workers else None
        if not workers:
            self.device = device_name()
        else:
            place = device_name() if torch.cuda.is_available() else "cpu"
            self.device = f"{place}, {workers} runs at a time, one thread each"

    def submit(self, run: Callable[[S], Mapping[str, Any]], settings: S) -> Future[Mapping[str, Any]]:
        if self.processes is not None:
            return self.processes.submit(run, settings)
        future: Future[Mapping[str, Any]] = Future()
        future.set_result(run(settings))
        return future


@contextmanager
def _pool(workers: int) -> Iterator[_Pool]:
    """Ends its processes on the way out also when a signal or an error interrupts; what is in the file stays."""
    silent = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # for the processes, whose progress bars would overwrite each other
    pool = _Pool(workers)
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if on_main_thread else None
    try:
        yield pool
    finally:
        os.environ.pop("TQDM_DISABLE")
        if silent is not None:
            os.environ["TQDM_DISABLE"] = silent
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if pool.processes is not None:
            running = list((getattr(pool.processes, "_processes", None) or {}).values())
            if sys.exc_info()[0] is not None:
                for process in running:
                    process.terminate()
            pool.processes.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    parent = parent_process()

    def follow() -> None:  # a parent that is killed tells nobody, and its processes would wait for ever
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
