"""The sweep engine: rates are tuned, nothing is made twice, a kill loses nothing, nothing stale is mixed in."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import provenance
import pytest
import run_file
import sweep
from provenance import ResultError, check_result

from tests.experiments import toy_sweep
from tests.experiments.toy_sweep import ToyRun, arguments, toy

WHOLE = 12  # two arms, each with three rates and three seeds


def marks(folder):
    path = folder / "runs.txt"
    return path.read_text().splitlines() if path.exists() else []


def read(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    check_result(data)
    return data


def arm_with(scores, rates=(1.0, 2.0, 4.0)):
    """An arm and the runs that it wants, when tuning runs score as given by rate."""
    arm = sweep.Arm("arm", rates, partial(ToyRun, "arm"), lambda entry: entry["score"])

    def find(settings):
        known = settings.stage == sweep.TUNING and settings.learning_rate in scores
        return {"score": scores[settings.learning_rate]} if known else None

    return arm.wanted(find)


def tried(runs):
    return [run.learning_rate for run in runs if run.stage == sweep.TUNING]


def final(runs):
    return [(run.learning_rate, run.seed) for run in runs if run.stage == sweep.TEST]


def test_rates_are_tuned_with_the_first_seed_before_any_test_run_is_wanted():
    runs, later = arm_with({1.0: 0.2, 2.0: 0.9})
    assert tried(runs) == [1.0, 2.0, 4.0]
    assert {run.seed for run in runs} == {0}
    assert later == 3


def test_all_seeds_run_at_the_best_rate():
    runs, later = arm_with({1.0: 0.2, 2.0: 0.9, 4.0: 0.5})
    assert final(runs) == [(2.0, 0), (2.0, 1), (2.0, 2)]
    assert later == 0


def test_of_rates_that_tie_the_smallest_is_taken():
    runs, _ = arm_with({1.0: 0.2, 2.0: 0.9, 4.0: 0.9})
    assert {rate for rate, _ in final(runs)} == {2.0}


@pytest.mark.parametrize(("scores", "further"), [((0.1, 0.2, 0.3), 8.0), ((0.3, 0.2, 0.1), 0.5)])
def test_a_best_rate_at_the_edge_is_followed_by_one_beyond(scores, further):
    runs, _ = arm_with(dict(zip((1.0, 2.0, 4.0), scores, strict=True)))
    assert tried(runs) == [1.0, 2.0, 4.0, further]
    assert final(runs) == []


def test_at_most_three_rates_are_added():
    runs, _ = arm_with({1.0: 0.1, 2.0: 0.2, 4.0: 0.3, 8.0: 0.4, 16.0: 0.5, 32.0: 0.6})
    assert tried(runs) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert {rate for rate, _ in final(runs)} == {32.0}


def test_a_plateau_at_the_edge_is_not_followed():
    runs, _ = arm_with({1.0: 0.9, 2.0: 0.9, 4.0: 0.1})
    assert tried(runs) == [1.0, 2.0, 4.0]
    assert {rate for rate, _ in final(runs)} == {1.0}


def test_a_whole_sweep_tunes_then_tests_and_says_that_it_is_complete(tmp_path):
    path = tmp_path / "toy.json"
    sweep.complete(toy(path, tmp_path), arguments())
    data = read(path)
    assert data["complete"]
    assert len(data["runs"]) == len(marks(tmp_path)) == WHOLE
    assert {run["learning_rate"] for run in data["runs"] if run["stage"] == "test"} == {0.02}


def test_going_on_repeats_nothing(tmp_path):
    path = tmp_path / "toy.json"
    sweep.complete(toy(path, tmp_path), arguments("--only", "first"))
    assert not read(path)["complete"]
    assert len(marks(tmp_path)) == WHOLE // 2
    for _ in range(2):
        sweep.complete(toy(path, tmp_path), arguments())
    assert read(path)["complete"]
    lines = [line.rsplit(" ", 1)[0] for line in marks(tmp_path)]
    assert len(set(lines)) == len(lines) == WHOLE


def test_a_run_that_fails_leaves_those_before_it(tmp_path, monkeypatch):
    path = tmp_path / "toy.json"
    working = toy_sweep.run

    def failing(settings, marks, pause):
        if settings.learning_rate == 0.04:
            raise RuntimeError("no more memory")
        return working(settings, marks, pause)

    monkeypatch.setattr(toy_sweep, "run", failing)
    with pytest.raises(RuntimeError, match="no more memory"):
        sweep.complete(toy(path, tmp_path), arguments())
    assert len(read(path)["runs"]) == 2
    monkeypatch.undo()
    sweep.complete(toy(path, tmp_path), arguments())
    assert len(marks(tmp_path)) == WHOLE


def test_each_run_names_the_session_that_made_it(tmp_path, monkeypatch):
    path = tmp_path / "toy.json"
    sweep.complete(toy(path, tmp_path), arguments("--only", "first"))
    monkeypatch.setattr(run_file, "session", lambda device: {**provenance.session(device=device), "date": "2031-02-03"})
    sweep.complete(toy(path, tmp_path), arguments())
    data = read(path)
    dates = {run["arm"]: data["sessions"][run["session"]]["date"] for run in data["runs"]}
    assert dates["second"] == "2031-02-03" != dates["first"]


def test_runs_of_another_backbone_are_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "toy.json"
    sweep.complete(toy(path, tmp_path), arguments())
    before = path.read_bytes()
    monkeypatch.setattr(sweep, "file_sha256", lambda _: "f" * 64)
    with pytest.raises(SystemExit) as ended:
        sweep.complete(toy(path, tmp_path), arguments())
    assert ended.value.code == 2
    assert "toy.json holds runs of another backbone" in capsys.readouterr().err
    assert path.read_bytes() == before
    sweep.complete(toy(path, tmp_path), arguments("--fresh"))
    assert read(path)["backbone_sha256"] == "f" * 64


def test_a_backbone_that_is_replaced_meanwhile_ends_the_sweep(tmp_path, monkeypatch, capsys):
    path, checksums = tmp_path / "toy.json", iter(["a" * 64] * 4 + ["b" * 64] * 20)
    monkeypatch.setattr(sweep, "file_sha256", lambda _: next(checksums))
    with pytest.raises(SystemExit):
        sweep.complete(toy(path, tmp_path), arguments())
    assert "the backbone was replaced during the sweep" in capsys.readouterr().err
    assert len(read(path)["runs"]) == 3


def test_runs_with_other_settings_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "toy.json"
    sweep.complete(toy(path, tmp_path), arguments())
    with pytest.raises(SystemExit):
        sweep.complete(toy(path, tmp_path, settings={"steps": 8}), arguments())
    assert "steps 7, not 8" in capsys.readouterr().err


def test_an_arm_that_there_is_not_is_an_error_that_lists_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep.complete(toy(tmp_path / "toy.json", tmp_path), arguments("--only", "third"))
    assert "matches none of: first, second" in capsys.readouterr().err


def test_runs_of_another_file_are_taken_over_with_their_session(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    sweep.complete(toy(first, tmp_path, arms=("first",)), arguments())
    sweep.complete(toy(second, tmp_path, reuse=(first,)), arguments())
    data = read(second)
    assert len(marks(tmp_path)) == len(data["runs"]) == WHOLE
    origins = {run["arm"]: data["sessions"][run["session"]].get("taken_from") for run in data["runs"]}
    assert origins == {"first": "first.json", "second": None}


def test_a_stale_file_is_not_taken_over(tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    sweep.complete(toy(first, tmp_path, arms=("first",), settings={"steps": 8}), arguments())
    sweep.complete(toy(second, tmp_path, reuse=(first,)), arguments())
    assert "nothing is taken over: first.json holds runs with other settings" in capsys.readouterr().out
    assert all("taken_from" not in session for session in read(second)["sessions"])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "toy.json"
    sweep.complete(toy(path, tmp_path, arms=("first",)), arguments())
    before = path.read_bytes()

    def full_disk(_):
        raise OSError("no space left")

    monkeypatch.setattr(provenance.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        sweep.complete(toy(path, tmp_path), arguments())
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".")] == []


def test_the_command_is_named_from_the_repositorys_root_wherever_it_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(provenance.ROOT / "experiments" / "minilm.py"), "--threads", "2"])
    monkeypatch.chdir(tmp_path)
    provenance.write_result(tmp_path / "result.json", {"score": 0.5}, start=time.perf_counter())
    assert read(tmp_path / "result.json")["provenance"]["command"] == "python experiments/minilm.py --threads 2"


def test_a_result_that_is_none_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(provenance.ROOT / "experiments" / "minilm.py")])
    path = tmp_path / "result.json"
    with pytest.raises(ResultError, match="nothing beside its provenance"):
        provenance.write_result(path, {}, start=0.0)
    assert not path.exists()


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_the_file_is_readable_and_no_kept_run_is_made_again(tmp_path):
    path = tmp_path / "toy.json"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for kept_at_least, how in ((1, signal.SIGKILL), (4, signal.SIGTERM), (6, signal.SIGKILL)):
        before = len(read(path)["runs"]) if path.exists() else 0
        process = subprocess.Popen([sys.executable, toy_sweep.__file__, path, tmp_path], env=environment, stdout=subprocess.DEVNULL)
        while not path.exists() or len(read(path)["runs"]) < max(kept_at_least, before + 1):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(how)
        assert process.wait(timeout=60) in (-signal.SIGKILL, 143)
        workers = {int(line.rsplit(" ", 1)[1]) for line in marks(tmp_path)}
        deadline = time.monotonic() + 60
        while any(map(running, workers)):  # a parent that is killed must not leave them behind
            assert time.monotonic() < deadline
            time.sleep(0.05)
    kept = {(run["arm"], run["learning_rate"], run["seed"], run["stage"]) for run in read(path)["runs"]}
    made = len(marks(tmp_path))
    sweep.complete(toy(path, tmp_path), arguments())
    assert read(path)["complete"]
    assert len(read(path)["runs"]) == WHOLE
    assert len(marks(tmp_path)) == made + WHOLE - len(kept)
