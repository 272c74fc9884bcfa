"""A small run for the tests of the loop and of its states, and the processes that are killed in them."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from training import report
from training.config import LogsConfig, OptimConfig, Options, Recipe
from training.loop import train
from training.rng import generator
from training.saved import load, read_state, states
from training.task import MicroBatch

ROOT = Path(__file__).parents[1]
OPTIM = OptimConfig(lr=3e-2, warmup_steps=5, ema_decay=0.9)
RECIPE = Recipe(
    "toy", 3, 40, {"sample": 16}, OPTIM, Options(), logs=LogsConfig(save_every=7, validate_every=10)
)


class Regression:
    """Learn y = sin(x) with dropout, from data made of (seed, step) alone."""

    def __init__(self, recipe=RECIPE, parts=1, pause=0.0, broken=()):
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Dropout(0.1), nn.Linear(24, 4))
        self.recipe, self.parts, self.pause, self.broken = recipe, parts, pause, broken

    def parameter_groups(self):
        return [
            {"name": "first", "params": list(self.module[0].parameters()), "lr_scale": 0.5},
            {"name": "last", "params": list(self.module[3].parameters()), "weight_decay": 0.0},
        ]

    def micro_batches(self, step):
        time.sleep(self.pause)
        x = torch.randn(self.recipe.batch["sample"], 4, generator=generator(self.recipe.seed, "x", step))
        if step in self.broken:
            x[0, 0] = torch.inf
        for part in x.chunk(self.parts):
            yield MicroBatch("sample", 1 / self.parts, part)

    def loss(self, x):
        error = self.module(x) - torch.sin(x)
        return error.square().mean(), {"error": error.detach().abs().mean()}

    def validate(self, module):
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        return {"error": (module(x) - torch.sin(x)).abs().mean().item()}


class TwoModalities:
    """Images train only the spatial part; videos also the temporal one, which starts at random."""

    def __init__(self, recipe, weights, video_until=10**9):
        torch.manual_seed(2)
        self.module = nn.ModuleDict({"spatial": nn.Linear(4, 4), "temporal": nn.Linear(4, 4)})
        self.recipe, self.weights, self.video_until = recipe, weights, video_until

    def parameter_groups(self):
        return [{"name": name, "params": list(part.parameters())} for name, part in self.module.items()]

    def micro_batches(self, step):
        for name, weight in self.weights.items():
            if name == "image" or step < self.video_until:
                yield MicroBatch(name, weight, (name, torch.randn(8, 4, generator=generator(0, name, step))))

    def loss(self, batch):
        name, x = batch
        y = self.module["spatial"](x)
        if name == "video":
            y = y + self.module["temporal"](x)
        return (y - x.flip(-1)).square().mean(), {}

    def validate(self, module):
        return {}


def run(folder, recipe=RECIPE, task=None, **options):
    return load(train(recipe, task or Regression(recipe), folder, progress=False, **options))


def newest_state(folder: Path) -> dict:
    return read_state(states(folder)[-1])


def same(a, b) -> bool:
    """Equal nested dicts and lists, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a: Path, b: Path):
    """Loss list byte for byte; weights, EMA and optimizer of the newest state bit for bit."""
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    for part in ("model", "ema", "optimizer"):
        assert same(newest_state(a)[part], newest_state(b)[part]), part


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def child(folder: Path, task: str) -> subprocess.CompletedProcess:
    """The same run in a process of its own."""
    command = [sys.executable, __file__, str(folder), task]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


class FullDisk(Regression):
    """From step 10 on no file may grow beyond 10 kB: what a full disk does to the state of step 14."""

    def micro_batches(self, step):
        if step == 10:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().micro_batches(step)


if __name__ == "__main__":  # the processes that are killed, and whose disk is full
    report.draw = lambda folder: None
    kind = sys.argv[2]
    task = FullDisk(pause=0.2) if kind == "full" else Regression(pause=0.05)
    train(RECIPE, task, Path(sys.argv[1]), progress=kind == "terminal")
