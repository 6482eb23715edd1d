"""SIGTERM: the step is finished, all is saved, the process ends, and the run goes on later."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from lorabook.training.checkpoint import read_checkpoint
from lorabook.training.interrupt import Interrupted, termination
from lorabook.training.loop import train
from tests.training.tiny import SETTINGS, adapted_gpt, examples, same, trained


def sigterm_in_forward_pass(model, step):
    """Send this process a SIGTERM in the middle of a step."""
    passes = []

    def hook(*_):
        passes.append(None)
        if len(passes) == step + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return model.register_forward_pre_hook(hook)


@pytest.fixture
def handler():
    """A handler of the caller's own, which must be back afterwards."""
    received = []

    def note(*_):
        received.append(None)

    before = signal.signal(signal.SIGTERM, note)
    yield note, received
    signal.signal(signal.SIGTERM, before)


def test_sigterm_finishes_the_step_saves_and_the_run_goes_on_as_if_never_stopped(tmp_path, handler):
    note, received = handler
    whole, model = adapted_gpt(dropout=0.3), adapted_gpt(dropout=0.3)
    log = train(whole, examples(), **SETTINGS)
    hook = sigterm_in_forward_pass(model, 4)
    with pytest.raises(Interrupted) as caught:
        train(model, examples(), **SETTINGS, checkpoint=tmp_path / "run")
    hook.remove()
    assert caught.value.code == 143
    assert len(read_checkpoint(tmp_path / "run")[0]["losses"]) == 5
    assert signal.getsignal(signal.SIGTERM) is note
    assert not received
    resumed = train(model, examples(), **SETTINGS, checkpoint=tmp_path / "run")  # the same model, as in a notebook
    assert (resumed.resumed_at, resumed.losses) == (5, log.losses)
    assert same(trained(model), trained(whole))


def test_sigterm_in_the_last_step_still_ends_the_process_and_nothing_is_lost(tmp_path, handler):
    model = adapted_gpt()
    hook = sigterm_in_forward_pass(model, SETTINGS["steps"] - 1)
    with pytest.raises(Interrupted):
        train(model, examples(), **SETTINGS, checkpoint=tmp_path / "run")
    hook.remove()
    assert train(model, examples(), **SETTINGS, checkpoint=tmp_path / "run").resumed_at == SETTINGS["steps"]


def test_without_a_checkpoint_the_signal_is_the_callers(handler):
    _, received = handler
    model = adapted_gpt()
    sigterm_in_forward_pass(model, 4)
    assert len(train(model, examples(), **SETTINGS).losses) == SETTINGS["steps"]
    assert len(received) == 1


def test_outside_the_main_thread_the_run_works_and_no_handler_is_set(tmp_path, handler):
    note, _ = handler
    seen, logs = [], []
    model = adapted_gpt()
    model.register_forward_pre_hook(lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=lambda: logs.append(train(model, examples(), **SETTINGS, checkpoint=tmp_path / "run")))
    thread.start()
    thread.join()
    assert len(logs[0].losses) == SETTINGS["steps"]
    assert set(seen) == {note}


def test_the_handler_is_put_back_after_an_exception_too(handler):
    note, _ = handler
    with pytest.raises(KeyError), termination():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is note


@pytest.mark.slow
def test_a_process_that_gets_sigterm_ends_with_143_and_without_a_traceback(tmp_path):
    code = "import sys; from tests.training.killed_run import run; print('ready', flush=True); run(sys.argv[1], steps=100_000)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    while not (tmp_path / "run").exists():
        assert process.poll() is None
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"Traceback" not in errors
    assert errors.endswith(b" \r")  # the bar is wiped out
    assert len(read_checkpoint(tmp_path / "run")[0]["losses"]) >= 1
