"""The recipes of the cascade at full size: animation, known frames, super-resolution, and Show-1's expert.

paper: UniVG (2401.09084, 3.3, 3.4 and 4.1) and Show-1 (2309.15818, 3.3, 3.6), as each recipe says; we: batch,
steps and moving average, on which both are silent, and Panda-70M for the videos that they have themselves.
"""

from collections.abc import Callable

from univid.config import BiasedNoiseProfile

from .config import EngineConfig, LogsConfig, OptimConfig, Recipe
from .data.config import DataConfig, DegradationConfig
from .options import DenoiseOptions, JoinedOptions, NoiseOptions
from .recipes_univid import JOINT, PANDA

UNTRAINED_V = "univid-untrained-v.safetensors"  # as the first stage's base, of Stable Diffusion 2.1 at 768 px
ZEROSCOPE = "zeroscope_v2_576w.safetensors"  # `python -m univid import` of it


def univid_animate() -> Recipe:
    """From a base model to one that moves the picture itself, to the pixel.

    paper: the first frame's latents join the input with weights of zero, biased noise from 600 to 990, text
    and picture dropped 0.1 each, 1e-5, videos alone; we: clips of 8 to 24 frames, as its base model has them.
    """
    options = DenoiseOptions(
        stage="animate",
        data=DataConfig(clips=PANDA, reference="first"),
        base=JOINT,
        noise=NoiseOptions(offset=0.1, biased=BiasedNoiseProfile(600, 990)),
        joined=JoinedOptions("first"),
        frozen_dtype="bfloat16",
    )
    return _recipe("univid_animate", options, seed=111, steps=25_000, batch=256)


def univid_known() -> Recipe:
    """From a base model to one that fills in, continues and closes clips.

    paper (Show-1): the known frames and a mask join the input, zeros between them, windows of 5 frames; we:
    all patterns in one model, clips of 5 to 24 frames, noise on the known ones.
    """
    options = DenoiseOptions(
        stage="known",
        data=DataConfig(clips=PANDA, reference="first", min_frames=5),
        base=JOINT,
        noise=NoiseOptions(offset=0.1),
        joined=JoinedOptions("known", noise=0.2),
        frozen_dtype="bfloat16",
    )
    return _recipe("univid_known", options, seed=112, steps=25_000, batch=256)


def univid_upscale() -> Recipe:
    """Super-resolution to 1280 x 720.

    paper: from the base model, v-prediction, biased noise from 0 to 700, text dropped 0.1, copies made poor
    by blur, resizing and JPEG, 1e-5, videos alone; we: from Stable Diffusion 2.1's v model instead, because
    the base model predicts eps; no PSTAttn; whole frames, as checkpointing lets 8 to 24 of them in.
    """
    options = DenoiseOptions(
        stage="upscale",
        data=DataConfig(clips=PANDA, buckets=((720, 1280),), degradations=DegradationConfig()),
        base=UNTRAINED_V,
        noise=NoiseOptions(offset=0.1, biased=BiasedNoiseProfile(0, 700)),
        frozen_dtype="bfloat16",
    )
    return _recipe("univid_upscale", options, seed=113, steps=25_000, batch=64)


def show1_expert() -> Recipe:
    """Show-1's last stage: a text-to-video model that refines enlarged videos of 29 x 320 x 576.

    paper: timesteps below 900, temporal layers alone; we: from ZeroScope, whose size that is, text dropped
    0.1, clips of 8 to 29 frames.
    """
    options = DenoiseOptions(
        stage="t2v",
        data=DataConfig(clips=PANDA, buckets=((320, 576),), max_frames=29),
        base=ZEROSCOPE,
        parts="temporal",
        noise=NoiseOptions(timesteps=(0, 900)),
        frozen_dtype="bfloat16",
    )
    return _recipe("show1_expert", options, seed=114, steps=25_000, batch=64)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (univid_animate, univid_known, univid_upscale, show1_expert)
}


def _recipe(name: str, options: DenoiseOptions, *, seed: int, steps: int, batch: int) -> Recipe:
    return Recipe(
        name=name,
        seed=seed,
        steps=steps,
        batch={"video": batch},
        optim=OptimConfig(lr=1e-5, warmup_steps=1000, decay="constant", ema_decay=0.9999),
        options=options,
        engine=EngineConfig(micro_batch={"video": 1}, checkpointing=True),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=1000, validate_every=1000, sample_every=1000, tensorboard=True),
    )
