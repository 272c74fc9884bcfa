"""States and folders of runs: exact resume after every kind of end, one run at a time, whose folder it is."""

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import torch
import toys
from toys import (
    OPTIM,
    RECIPE,
    Regression,
    assert_same_run,
    child,
    environment,
    newest_state,
    run,
    same,
)

from training import report
from training.config import EngineConfig, LogsConfig, Options
from training.report import read
from training.state import State

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


class Signalled(Regression):
    """Gets signals in the middle of a step."""

    def __init__(self, step, *names):
        super().__init__()
        self.at, self.names = step, names

    def micro_batches(self, step):
        for name in self.names if step == self.at else ():
            signal.raise_signal(getattr(signal, name))
        return super().micro_batches(step)


@pytest.fixture
def hangup():
    """SIGHUP as a terminal's programs have it, also where the tests were started to survive it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("cut, name", [(1, "SIGTERM"), (7, "SIGINT"), (23, "SIGHUP")])
def test_a_stopped_run_continues_exactly(whole, tmp_path, cut, name, hangup):
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with pytest.raises(SystemExit, match=f"{name} at step {cut}, all is saved"):
        run(tmp_path, task=Signalled(cut - 1, name))
    assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}
    assert newest_state(tmp_path)["step"] == cut
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_terminal_that_closes_says_so_twice(tmp_path, hangup):
    with pytest.raises(SystemExit, match="SIGHUP at step 5, all is saved"):
        run(tmp_path, task=Signalled(4, "SIGHUP", "SIGHUP"))
    with pytest.raises(KeyboardInterrupt):  # while the second of the others acts at once
        run(tmp_path, task=Signalled(8, "SIGHUP", "SIGINT", "SIGTERM"))
    assert newest_state(tmp_path)["step"] == 7


def test_a_run_that_is_to_survive_its_terminal_does(whole, tmp_path, hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    run(tmp_path, task=Signalled(4, "SIGHUP"))
    assert_same_run(tmp_path, whole)


def test_systems_without_that_signal_train_too(whole, tmp_path, monkeypatch):
    for name in ("SIGHUP", "SIGCHLD"):
        monkeypatch.delattr(signal, name)
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_connection_that_drops_ends_a_run_saved(whole, tmp_path):
    """A real terminal, which closes; what the run still prints goes nowhere."""
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execve(sys.executable, [sys.executable, toys.__file__, str(tmp_path), "terminal"], environment())
    shown = b""
    while len(read(tmp_path / "metrics.jsonl")) < 9:
        shown += os.read(terminal, 10_000)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1, shown
    saved = newest_state(tmp_path)["step"]
    assert saved == len(read(tmp_path / "metrics.jsonl")) >= 9
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_line_that_nobody_reads_ends_no_run(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stderr", os.fdopen(writing, "w", buffering=1))
    with pytest.raises(BrokenPipeError):
        sys.stderr.write("x\n")
    with report.bar("run", 0, 10, True) as bar:
        bar.mininterval = 0
        for _ in range(10):
            bar.set_postfix(loss="1")
            bar.update()


def test_a_crashed_run_drops_the_rows_after_its_last_state(whole, tmp_path):
    class Crashing(Regression):
        def micro_batches(self, step):
            if step == 18:
                raise KeyError("crash")
            return super().micro_batches(step)

    with pytest.raises(KeyError):
        run(tmp_path, task=Crashing())
    assert len(read(tmp_path / "metrics.jsonl")) == 18 and newest_state(tmp_path)["step"] == 14
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_killed_process_continues_exactly(whole, tmp_path):
    process = subprocess.Popen([sys.executable, toys.__file__, str(tmp_path), "killed"], env=environment())
    try:
        while len(read(tmp_path / "metrics.jsonl")) < 16:
            assert process.poll() is None, "the process ended before it was killed"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "final.pt").exists()
    run(tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    "tail",
    [
        b"garbage\n",
        b'{"step": 22, "lo',
        b"\xff\xfe\0\0" * 100 + b"\n",
        b'{"loss": 1}\n[1]\n5\nnull\n"step"\n',
        b'{"step": "3", "loss": 1}\n{"step": 3, "loss": [1]}\n{"step": 1e999}\n',
        b"[" * 100_000 + b"\n",
        b'{"step": ' + b"9" * 5000 + b"}\n\n\n",
    ],
)
def test_a_log_is_no_state(whole, tmp_path, tail):
    with pytest.raises(SystemExit):
        run(tmp_path, task=Signalled(20, "SIGTERM"))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_log_that_cannot_be_written_is_said_once(whole, tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "tensorboard").write_text("in the way")
    recipe = dataclasses.replace(RECIPE, logs=dataclasses.replace(RECIPE.logs, tensorboard=True))
    final = run(tmp_path, recipe)
    assert same(final["ema"], run(whole)["ema"])
    said = [record.getMessage() for record in caplog.records if "goes on without it" in record.getMessage()]
    assert len(said) == 2 and "metrics.jsonl is a folder" in said[0] and "tensorboard" in said[1]


def test_a_run_with_skipped_steps_goes_on(tmp_path):
    """Their loss is null in the log, which is written anew."""
    broken = {"broken": (12, 30)}
    run(tmp_path / "whole", task=Regression(**broken))
    run(tmp_path / "cut", dataclasses.replace(RECIPE, steps=20), Regression(**broken))
    run(tmp_path / "cut", task=Regression(**broken))
    assert [row["loss"] for row in read(tmp_path / "cut" / "metrics.jsonl")].count(None) == 2
    assert newest_state(tmp_path / "cut")["skipped"] == 2


def test_a_full_disk_stops_the_run_and_leaves_the_states_before(whole, tmp_path):
    done = child(tmp_path, "full")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ") and "step_00000014 could not be written (" in last, last
    assert "the states before it are whole" in last
    assert not list(tmp_path.glob(".partial_*"))
    assert newest_state(tmp_path)["step"] == 7
    run(tmp_path)
    assert_same_run(tmp_path, whole)
    assert not list(tmp_path.glob(".partial_*"))


def test_one_run_at_a_time_works_in_a_folder(tmp_path):
    class Second(Regression):
        def micro_batches(self, step):
            with pytest.raises(ValueError, match="another run is at work in .*; wait for it, stop it"):
                run(tmp_path)
            return super().micro_batches(step)

    recipe = dataclasses.replace(RECIPE, steps=1)
    run(tmp_path, recipe, Second(recipe))
    run(tmp_path)  # and then the next


def test_another_engine_and_other_logs_continue_a_run(whole, tmp_path):
    run(tmp_path, dataclasses.replace(RECIPE, steps=10, optim=OPTIM, logs=LogsConfig(save_every=2)))
    engine = EngineConfig(parallel="fsdp", micro_batch={"sample": 4}, checkpointing=True)
    run(tmp_path, dataclasses.replace(RECIPE, steps=12, engine=engine))
    assert newest_state(tmp_path)["step"] == 12


def test_the_averaged_weights_are_lent_and_given_back():
    task = Regression()
    kept = State(task.module, torch.optim.AdamW(task.module.parameters()))
    for average in kept.ema.values():
        average.mul_(2)
    before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
    with kept.averaged() as module:
        assert not module.training
        assert all(torch.equal(tensor, 2 * before[name]) for name, tensor in module.state_dict().items())
    assert task.module.training
    assert same(dict(task.module.state_dict()), before)
    assert same(kept.ema, {name: 2 * tensor for name, tensor in before.items()})


def test_a_finished_run_is_left_as_it_is_and_more_steps_extend_it(tmp_path):
    constant = dataclasses.replace(RECIPE, optim=dataclasses.replace(OPTIM, decay="constant"))
    run(tmp_path / "whole", constant)
    for steps in (20, 20, 40):
        assert run(tmp_path / "extended", dataclasses.replace(constant, steps=steps))["step"] == steps
    assert_same_run(tmp_path / "extended", tmp_path / "whole")
    assert json.loads((tmp_path / "extended" / "config.json").read_text())["steps"] == 40
    with pytest.raises(ValueError, match="at step 40, beyond the 30 steps"):
        run(tmp_path / "extended", dataclasses.replace(constant, steps=30))


@dataclasses.dataclass(frozen=True)
class OtherOptions(Options):
    data: int = 1


def test_other_settings_in_the_same_folder_are_refused(whole):
    optim = dataclasses.replace(OPTIM, lr=0.5, betas=(0.9, 0.95))
    before = (whole / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(optim.betas, optim.lr, options\); take another"):
        run(whole, dataclasses.replace(RECIPE, optim=optim, options=OtherOptions()))
    assert (whole / "config.json").read_bytes() == before
