"""Two processes, by DDP or FSDP2, do what one does at the same global batch, and continue its run.

One of them dies on the way, and torchrun starts both again.
"""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from training import distributed
from training.config import EngineConfig, LogsConfig, OptimConfig, Recipe
from training.loop import train
from training.report import read
from training.rng import generator
from training.state import load, newest, read_state
from training.task import MicroBatch, parameter_groups
from univid.conditioning import Conditioning
from univid.config import UNetConfig
from univid.diffusion import NoiseSchedule, training_loss
from univid.initialization import initialize
from univid.presets import TINY
from univid.unet import UNet

CONFIG = dataclasses.replace(
    TINY.unet, model_channels=16, head_channels=16, norm_groups=8, context_dim=32,
    image_stream=dataclasses.replace(TINY.unet.image_stream, width=32),
)  # fmt: skip
TEMPORAL = dataclasses.replace(CONFIG.temporal, conv_kernels=(3, 5), segment_frames=(8, 4))
SHALLOW = dataclasses.replace(CONFIG, channel_mult=(1, 2), attention_levels=(True, True), temporal=TEMPORAL)
SCHEDULE = NoiseSchedule(TINY.schedule)
FRAMES = {"image": 1, "video": 3}
STEPS, CUT = 10, 6


class Denoising:
    """The U-Net on random latents and tokens, which are functions of the sample's position."""

    def __init__(self, recipe: Recipe, config: UNetConfig = CONFIG):
        self.recipe = recipe
        self.module = UNet(config)
        initialize(self.module, 0)

    def parameter_groups(self):
        return parameter_groups(self.module)

    def micro_batches(self, step):
        for name, size in self.recipe.batch.items():
            positions = distributed.share(range(step * size, (step + 1) * size))
            passes = len(positions) // self.recipe.engine.micro_batch.get(name, len(positions))
            for part in range(passes):
                yield MicroBatch(name, 1 / passes, (name, positions[part::passes]))

    def loss(self, batch):
        name, positions = batch
        samples = [self.draw(name, position) for position in positions]
        x0, noise, text, image = (torch.stack(field) for field in zip(*samples, strict=True))
        timesteps = torch.tensor([(position * 377) % 1000 for position in positions])
        cond = Conditioning(text, image, torch.ones(len(positions), 2))
        loss = training_loss(self.module, SCHEDULE, "v", x0, noise, timesteps, cond)
        return loss.mean(), {"largest": loss.detach().amax()}

    def draw(self, name, position):
        rng = generator(self.recipe.seed, name, position)
        shapes = [(4, FRAMES[name], 8, 8)] * 2 + [(5, 32), (6, 32)]
        return [torch.randn(shape, generator=rng) for shape in shapes]

    def validate(self, module):
        assert not module.training
        return {"loss": self.loss(("video", range(-4, 0)))[0].item()}


def recipe(**engine) -> Recipe:
    return Recipe(
        name="denoising",
        task="denoising",
        seed=0,
        steps=STEPS,
        batch={"image": 4, "video": 4},
        optim=OptimConfig(lr=2e-3, warmup_steps=2, ema_decay=0.9, decay="constant"),
        engine=EngineConfig(**engine),
        logs=LogsConfig(save_every=CUT, validate_every=5),
    )


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


def torchrun(folder: Path, *jobs: str, deaths: int = 0) -> None:
    """Run the jobs one after the other in two processes, which are started again when one has died.

    deaths: how many are meant. One more is survived too, but said.
    """
    command = f"-m torch.distributed.run --nproc-per-node 2 --standalone --max-restarts {deaths + 1}".split()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command, __file__, str(folder), *jobs],
        env=environment, timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    if done.stdout.count("started") > deaths + 1:
        warnings.warn(f"a process died that was not meant to:\n{done.stderr[-6000:]}", stacklevel=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with every job done by two processes, and "one": the same by one process."""
    root = tmp_path_factory.mktemp("runs")
    start(recipe(), root / "one")
    start(JOBS["images"], root / "one images")
    torchrun(root, *JOBS, deaths=1)
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
    states = read_state(newest(folder)), read_state(newest(other))
    for part in ("model", "ema"):
        torch.testing.assert_close(states[0][part], states[1][part], atol=1e-4, rtol=1e-3)
    assert states[0]["optimizer"].keys() == states[1]["optimizer"].keys()


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
    moved = read_state(newest(runs / job))["optimizer"]
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
    torchrun(runs, "longer ddp")
    for job in ("fsdp", "ddp"):
        rows = losses(runs / job)
        assert len(rows) == STEPS + 4 and rows == pytest.approx(losses(tmp_path / "one"), rel=2e-5)


@pytest.mark.slow
def test_compiled_blocks_train_alike(monkeypatch, tmp_path):
    """Each block is traced for each length, without a break; by a backend that translates nothing, as that
    takes minutes on a CPU.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", torch._dynamo.config.recompile_limit)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        job = dataclasses.replace(recipe(compile=compiled), steps=3, logs=LogsConfig())
        task = Denoising(job, SHALLOW)
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
        if distributed.rank() == 0:
            print("started")
        for name in names:
            if name.startswith("longer "):
                name = name.removeprefix("longer ")
                start(dataclasses.replace(recipe(parallel="fsdp"), steps=STEPS + 4), Path(root) / name)
            else:
                start(JOBS[name], Path(root) / name, Dying if "dying" in name else Denoising)
