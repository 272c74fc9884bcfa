"""Two processes train on real clips as one does, where one of them shows pictures and the other none."""

import sys
from pathlib import Path

import pytest
import torch
from denoise_runs import Maker, write_media
from processes import torchrun

from training import distributed
from training.config import EngineConfig
from training.loop import train
from training.report import read
from training.saved import load
from training.stages.conditions import BOTH, NONE
from training.stages.denoise import DenoiseTask

OPTIONS = {"batch": {"image": 2, "video": 2}, "modes": {"none": 0.5, "both": 0.5}, "seed": 1, "name": "run"}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(small_checkpoint, tmp_path, parallel):
    make = Maker(write_media(tmp_path), small_checkpoint, tmp_path)
    task, _, one = make.run(tmp_path / "one", **OPTIONS)
    split = [set(task.step_modes(m, step)) == {NONE, BOTH} for m in ("image", "video") for step in (0, 1)]
    assert any(split)  # the processes show different modes
    torchrun(__file__, tmp_path, small_checkpoint, parallel)
    rows = [read(tmp_path / name / "metrics.jsonl") for name in ("one", parallel)]
    losses = [[row[key] for row in r for key in ("loss", "image/loss", "video/loss")] for r in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    two = load(tmp_path / parallel / "final.pt")
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=5e-5, rtol=1e-4)


if __name__ == "__main__":
    root, base, kind = sys.argv[1:]
    with distributed.process_group():
        made = Maker(Path(root), Path(base), Path(root))
        recipe = made.recipe(engine=EngineConfig(parallel=kind), **OPTIONS)
        train(recipe, DenoiseTask(recipe, Path(root)), Path(root) / kind, progress=False)
