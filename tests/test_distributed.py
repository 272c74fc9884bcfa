"""Two processes, by DDP or FSDP2, do what one does at the same global batch, and continue its run.

One of them dies on the way, and torchrun starts both again.
"""

import dataclasses
import functools
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from processes import torchrun
from random_latents import CONFIG, CUT, SHALLOW, STEPS, Denoising, recipe
from torch import nn

from training import distributed
from training.config import EngineConfig, LogsConfig, Recipe
from training.loop import train
from training.report import read
from training.saved import load, read_state, states
from univid.unet import UNet

ACCUMULATION = {"image": 1, "video": 2}
JOBS = {
    "ddp": recipe(parallel="ddp"),
    "fsdp, dying": recipe(parallel="fsdp"),
    "ddp, accumulation": recipe(parallel="ddp", micro_batch=ACCUMULATION),
    "fsdp": recipe(parallel="fsdp"),
    "fsdp, accumulation, checkpointing": recipe(
        parallel="fsdp", micro_batch=ACCUMULATION, checkpointing=True
    ),
    "images": dataclasses.replace(recipe(parallel="ddp"), batch={"image": 4}, logs=LogsConfig()),
    "fsdp images": dataclasses.replace(recipe(parallel="fsdp"), batch={"image": 4}, logs=LogsConfig()),
    "fsdp, bfloat16": dataclasses.replace(recipe(parallel="fsdp"), dtype="bfloat16", steps=2),
}


class Dying(Denoising):
    """The second process dies between two states, unless it has been started again."""

    def micro_batches(self, step):
        if step == CUT + 2 and distributed.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().micro_batches(step)


def start(job: Recipe, folder: Path, kind=Denoising) -> None:
    train(job, kind(job), folder, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with every job done by two processes, and "one": the same by one process."""
    root = tmp_path_factory.mktemp("runs")
    start(recipe(), root / "one")
    start(JOBS["images"], root / "one images")
    torchrun(__file__, root, *JOBS, deaths=1)
    return root


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read(folder / "metrics.jsonl")]


def assert_close(folder: Path, other: Path) -> None:
    """The same losses, gradient norms and validation to 1e-5, the same weights and EMA as far as Adam allows.

    Where a gradient is nearly zero its rounding decides on the whole step of 2e-3; ten steps are 2e-2.
    """
    for row, expected in zip(read(folder / "metrics.jsonl"), read(other / "metrics.jsonl"), strict=True):
        expected = {name: value for name, value in expected.items() if not name.endswith("largest")}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    one, two = (read_state(states(path)[-1]) for path in (folder, other))
    for part in ("model", "ema"):
        torch.testing.assert_close(one[part], two[part], atol=1e-4, rtol=1e-3)
    assert one["optimizer"].keys() == two["optimizer"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("job", [name for name in JOBS if "images" not in name and "bfloat16" not in name])
def test_two_processes_equal_one(runs, job):
    assert_close(runs / job, runs / "one")
    assert load(runs / job / "final.pt")["ema"].keys() == dict(UNet(CONFIG).named_parameters()).keys()


@pytest.mark.slow
def test_another_sample_makes_another_run(runs, tmp_path):
    """The negative control of the tolerance above."""
    start(dataclasses.replace(recipe(), seed=1), tmp_path)
    assert losses(tmp_path) != pytest.approx(losses(runs / "one"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["images", "fsdp images"])
def test_pictures_leave_temporal_layers_without_gradient_on_two_processes(runs, job):
    assert_close(runs / job, runs / "one images")
    moved = read_state(states(runs / job)[-1])["optimizer"]
    fresh, after = Denoising(recipe()).module.state_dict(), load(runs / job / "final.pt")["model"]
    silent = [name for name in fresh if "temporal" in name or "pst" in name]
    assert silent and not any(name in moved for name in silent)
    assert all(torch.equal(fresh[name], after[name]) for name in silent)
    assert sum(not torch.equal(fresh[name], after[name]) for name in fresh) > 100


@pytest.mark.slow
def test_shards_stay_float32_under_bfloat16(runs):
    final = load(runs / "fsdp, bfloat16" / "final.pt")
    assert all(tensor.dtype == torch.float32 for part in ("model", "ema") for tensor in final[part].values())
    assert losses(runs / "fsdp, bfloat16") == pytest.approx(losses(runs / "one")[:2], rel=2e-2)


@pytest.mark.slow
def test_a_run_of_two_processes_continues_on_one_and_back(runs, tmp_path):
    """FSDP on two processes to step 10, one process to step 14; and DDP to step 10, FSDP to step 14."""
    longer = dataclasses.replace(recipe(), steps=STEPS + 4)
    start(longer, tmp_path / "one")
    start(longer, runs / "fsdp")
    torchrun(__file__, runs, "longer ddp")
    for job in ("fsdp", "ddp"):
        rows = losses(runs / job)
        assert len(rows) == STEPS + 4 and rows == pytest.approx(losses(tmp_path / "one"), rel=2e-5)


@pytest.mark.slow
def test_compiled_blocks_train_alike(monkeypatch, tmp_path):
    """Each block is traced for each length, without a break; by a backend that translates nothing, as that
    takes minutes on a CPU.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = torch._dynamo.config
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        job = dataclasses.replace(recipe(compile=compiled), steps=3, logs=LogsConfig())
        task = Denoising(job, SHALLOW)
        with config.patch(recompile_limit=config.recompile_limit, fail_on_recompile_limit_hit=True):
            train(job, task, tmp_path / str(compiled), progress=False)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert (graphs > len(task.module.blocks())) == compiled
    assert not torch._dynamo.utils.counters["graph_break"]
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-5)
    torch._dynamo.reset()


def test_only_the_unet_is_sharded(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    task = Denoising(recipe())
    task.module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='expected engine.parallel "ddp" for a Linear'):
        distributed.Network(task, EngineConfig(parallel="fsdp"))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="does not divide"):
        distributed.share(range(7))


if __name__ == "__main__":
    root, *names = sys.argv[1:]
    with distributed.process_group():
        for name in names:
            if name.startswith("longer "):
                name = name.removeprefix("longer ")
                start(dataclasses.replace(recipe(parallel="fsdp"), steps=STEPS + 4), Path(root) / name)
            else:
                start(JOBS[name], Path(root) / name, Dying if "dying" in name else Denoising)
