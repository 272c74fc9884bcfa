"""Two processes of a run do what one process does at the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training import distributed
from training.config import OptimConfig, Recipe
from training.loop import train
from training.report import read
from training.state import load
from training.task import MicroBatch


class Regression:
    """A line through noisy points; the points of a step are a function of their positions."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def parameter_groups(self):
        return [{"name": "all", "params": list(self.module.parameters())}]

    def micro_batches(self, step):
        for name in ("image", "video"):
            yield MicroBatch(name, 0.5, (name, distributed.share(range(step * 8, step * 8 + 8))))

    def loss(self, batch):
        name, positions = batch
        x = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(p)) for p in positions])
        target = x.sum(1, keepdim=True) * (2 if name == "video" else 1)
        return (self.module(x) - target).square().mean(), {}

    def validate(self, module):
        return {}


RECIPE = Recipe(
    name="line", task="line", seed=0, steps=6, batch={"image": 8, "video": 8}, optim=OptimConfig(lr=1e-2)
)


def test_two_processes_equal_one(tmp_path):
    train(RECIPE, Regression(), tmp_path / "one", progress=False)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        __file__,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(
        [*command, str(tmp_path / "two")], check=True, env=environment, timeout=300, capture_output=True
    )
    one, two = (read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 6
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    weights = [load(tmp_path / name / "final.pt") for name in ("one", "two")]
    for part in ("model", "ema"):
        for name, value in weights[0][part].items():
            torch.testing.assert_close(weights[1][part][name], value, atol=1e-6, rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="does not divide"):
        distributed.share(range(7))


if __name__ == "__main__":
    with distributed.process_group():
        train(RECIPE, Regression(), Path(sys.argv[1]), progress=False)
