"""States and folders of runs: exact resume after every kind of end, one run at a time, whose folder it is."""

import dataclasses
import json
import shutil
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

from training.config import EngineConfig, LogsConfig
from training.report import read
from training.state import State

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


@pytest.mark.parametrize("cut", [1, 7, 23])
def test_a_stopped_run_continues_exactly(whole, tmp_path, cut):
    class Stopping(Regression):
        def micro_batches(self, step):
            if step == cut - 1:
                signal.raise_signal(signal.SIGTERM)
            return super().micro_batches(step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=f"SIGTERM at step {cut}, all is saved"):
        run(tmp_path, task=Stopping())
    assert signal.getsignal(signal.SIGTERM) is before
    assert newest_state(tmp_path)["step"] == cut
    run(tmp_path)
    assert_same_run(tmp_path, whole)


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


def test_half_written_and_damaged_states_are_ignored(whole, tmp_path, caplog):
    run(tmp_path, dataclasses.replace(RECIPE, steps=21))
    shutil.copytree(tmp_path / "step_00000021", tmp_path / ".partial_step_00000028")
    shutil.copytree(tmp_path / "step_00000021", tmp_path / "step_00000028")
    (tmp_path / "step_00000028" / ".metadata").unlink()
    (tmp_path / "step_00000035").mkdir()
    assert newest_state(tmp_path)["step"] == 21
    assert "step_00000035 is incomplete" in caplog.text and "step_00000028 is incomplete" in caplog.text
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 22, "lo')
    run(tmp_path)
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == list(range(1, 41))
    assert newest_state(tmp_path)["step"] == 40


def test_a_full_disk_stops_the_run_and_leaves_the_states_before(whole, tmp_path):
    done = child(tmp_path, "full")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ") and "step_00000014 could not be written (" in last, last
    assert "the states before it are whole" in last
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


def test_other_settings_in_the_same_folder_are_refused(whole):
    optim = dataclasses.replace(OPTIM, lr=0.5, betas=(0.9, 0.95))
    before = (whole / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(optim.betas, optim.lr, options\); take another"):
        run(whole, dataclasses.replace(RECIPE, optim=optim, options={"data": 1}))
    assert (whole / "config.json").read_bytes() == before
