"""Every result file holds what a result must hold, and the schema refuses what does not."""

import copy
import json
from pathlib import Path

import pytest
from provenance import RESULTS, ROOT, WEIGHTS, ResultError, check_result, file_sha256, script_of, settings_sha256

FILES = sorted(RESULTS.glob("*.json"))
every_result = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_results():
    assert FILES


@every_result
def test_every_result_fits_the_schema(path):
    check_result(read(path))


@every_result
def test_every_result_names_a_script_that_there_is(path):
    assert (ROOT / script_of(read(path)["provenance"]["command"])).is_file()


@every_result
def test_every_sweep_is_about_the_backbone_that_comes_with_the_book(path):
    data = read(path)
    assert data.get("backbone_sha256", file_sha256(WEIGHTS / "backbone.safetensors")) == file_sha256(WEIGHTS / "backbone.safetensors")


@every_result
def test_no_result_was_made_by_a_quick_version(path):
    data = read(path)
    commands = [origin["command"] for origin in (data["provenance"], *data.get("sessions", ()))]
    assert not [command for command in commands if "--quick" in command]


def sweep_result():
    origin = {"commit": "1234abc", "device": "cpu", "python": "3.11.7", "torch": "2.13.0", "date": "2026-01-31"}
    command = {"command": "python experiments/methods.py --task reading"}
    settings = {"steps": 300}
    run = {"arm": "full", "learning_rate": 0.001, "seed": 0, "validation": {"exact_match": 0.5}, "share": 1.0, "seconds": 3.5, "session": 0}
    return {
        "provenance": {**origin, **command, "seconds": 12},
        "backbone_sha256": "a" * 64,
        "settings": settings,
        "settings_sha256": settings_sha256(settings),
        "complete": False,
        "sessions": [{**origin, **command, "uncommitted_changes": False}],
        "runs": [run, {**run, "seed": 1}],
    }


def test_a_whole_sweep_is_accepted():
    check_result(sweep_result())


def broken(*path, value=None):
    """The sweep's result with one value replaced, or left out when None."""
    data = copy.deepcopy(sweep_result())
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (broken("provenance"), "needs a 'provenance'"),
        (broken("provenance", "commit"), r"provenance\.commit is missing"),
        (broken("provenance", "commit", value="main"), r"provenance\.commit must be an abbreviated commit, got 'main'"),
        (broken("provenance", "date", value="yesterday"), r"provenance\.date must be like"),
        (broken("provenance", "seconds", value="12"), r"provenance\.seconds must be int or float, got '12'"),
        (broken("provenance", "seconds", value=-1), "at least 0, got -1"),
        (broken("provenance", "command", value="python notes.py"), "must be 'python experiments/<script>.py"),
        (broken("provenance", "command", value="python experiments/../notes.py"), "must be 'python experiments/<script>.py"),
        (broken("runs", value=[{}][:0]), "at least one"),
        (broken("runs", 1, "seed", value=0), r"runs\[1\] stands twice"),
        (broken("runs", 1, "seconds"), r"runs\[1\]\.seconds is missing"),
        (broken("runs", 0, "session"), r"runs\[0\]\.session is missing"),
        (broken("runs", 0, "session", value=1), "must be one of the 1 sessions, got 1"),
        (broken("runs", 0, "validation", value={"exact_match": 50.0}), r"runs\[0\]\.validation must lie between 0 and 1, got 50\.0"),
        (broken("runs", 0, "loss", value=float("nan")), r"runs\[0\]\.loss must be a finite number"),
        (broken("settings", value={"steps": 400}), "settings_sha256 must be the checksum"),
        (broken("complete", value="yes"), "complete must be bool"),
        (broken("sessions", 0, "uncommitted_changes"), r"sessions\[0\]\.uncommitted_changes is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(data, message):
    with pytest.raises(ResultError, match=message):
        check_result(data)


def test_every_experiment_is_in_the_list_or_left_out_for_a_reason():
    listed = (ROOT / "experiments" / "all.py").read_text(encoding="utf-8")
    scripts = {path.name for path in Path(ROOT / "experiments").glob("*.py") if "\ndef main()" in path.read_text(encoding="utf-8")}
    apart = {"all.py", "pretrain.py", "bench_linear.py", "bench_loop.py"}
    assert {name for name in scripts - apart if f'Script("{name}' not in listed} == set()
