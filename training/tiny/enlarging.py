"""The expert that enlarges the built-in model's clips, trained as upscalers of full size are.

Its clips are drawn at twice the size, written as files and prepared by `training.prepare`; its base is the
built-in model with a decoder that knows this size.
"""

from pathlib import Path

import torch

from training import distributed
from training.config import LogsConfig, OptimConfig, Recipe
from training.data.config import DataConfig, DegradationConfig, SourceConfig
from training.options import DenoiseOptions, NoiseOptions
from training.prepare import PrepareConfig, WorkConfig, prepare
from training.saved import FINAL, load, take_over
from univid import checkpoints
from univid.checkpoints.native import BUILT_IN
from univid.config import BiasedNoiseProfile

from . import clips
from .options import DecoderOptions

NAME, DECODER = "tiny_upscale", "tiny_decoder"  # the runs
SEED, SIZE, FPS = 8, 128, 8
CLIPS, FRAMES, SHOWN = 800, 16, 8  # frames of a clip, and of a sample
LIGHT = DegradationConfig("light")
# UniVG has 700, for 90 x 160 latent cells. Of 16 x 16 each says so much that noise takes more than the
# network gives back: from 30, 60 and 100 four clips came out at 33.7, 32.2 and 30.4 dB, from 250 at 25.
BIASED = BiasedNoiseProfile(0, 60)


def decoder(gpu: bool = False) -> Recipe:
    """The built-in autoencoder's decoder at the larger size, which it was never shown."""
    return Recipe(
        name=DECODER,
        seed=18,
        steps=300,
        batch={"image": 128 if gpu else 8},
        optim=_optim(2e-3 if gpu else 1e-3, ema_decay=0.99),
        options=DecoderOptions(kl_weight=0.0, start=BUILT_IN, size=SIZE),
        dtype="bfloat16" if gpu else "float32",
        logs=LogsConfig(every=10, save_every=200, validate_every=200),
    )


def recipe(root: Path, gpu: bool = False) -> Recipe:
    """UniVG's super-resolution (2401.09084 3.3), from what `write_base` and `draw` write."""
    return Recipe(
        name=NAME,
        seed=17,
        steps=700,
        batch={"video": 128 if gpu else 8},
        optim=_optim(1.5e-3 if gpu else 1e-3, ema_decay=0.998),
        options=DenoiseOptions(
            stage="upscale",
            data=DataConfig(
                clips=SourceConfig((str(_prepared(root) / "clips"),)), buckets=((SIZE, SIZE),),
                min_frames=SHOWN, max_frames=SHOWN, fps=FPS, degradations=LIGHT, workers=1,
            ),
            base=str(_base(root)),
            noise=NoiseOptions(biased=BIASED),
        ),
        dtype="bfloat16" if gpu else "float32",
        logs=LogsConfig(every=10, save_every=250, validate_every=250),
    )  # fmt: skip


def write_base(root: Path) -> None:
    """The built-in model with the decoder of its run."""
    model, path = checkpoints.load(dtype=torch.float32), root / DECODER / FINAL
    take_over(model.vae, load(path)["ema"], path)
    checkpoints.save(_base(root), model, dtype=torch.float16)


def draw(root: Path) -> None:
    """Clips and their poor copies as a run reads them; what is there stays."""
    folder = root / f"{NAME}_data" / "clips"
    clips.draw(folder, CLIPS, seed=SEED, frames=FRAMES, size=SIZE, fps=FPS)
    prepare(
        PrepareConfig(
            base=str(_base(root)), out=_prepared(root), clips=SourceConfig((str(folder),)),
            buckets=((SIZE, SIZE),), frames=FRAMES, min_frames=SHOWN, fps=FPS, references=1,
            degradations=LIGHT, work=WorkConfig(folder_shard=100),
        )
    )  # fmt: skip
    distributed.barrier()


def _optim(lr: float, ema_decay: float) -> OptimConfig:
    return OptimConfig(lr=lr, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=50, ema_decay=ema_decay)


def _base(root: Path) -> Path:
    return root / f"{NAME}_data" / "base.safetensors"


def _prepared(root: Path) -> Path:
    return root / f"{NAME}_data" / "prepared"
