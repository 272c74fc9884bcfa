"""The recipes at full size: the paper's three stages on LAION and Panda-70M, and finetuning on own clips.

paper: stages, data and resolution (univid IV-A), no optimizer; we: learning rate, mixture, number of frames
and offset noise of its companion UniVG (4.1), because its base model has the same trunk and conditions.
"""

from collections.abc import Callable
from pathlib import Path

from univid.checkpoints import native
from univid.config import SamplingProfile

from .config import EngineConfig, LogsConfig, OptimConfig, Recipe
from .data.buckets import buckets_of
from .data.config import DataConfig, SourceConfig
from .lora import LoraConfig
from .options import DenoiseOptions, DistillOptions, NoiseOptions
from .stages.base import describe_base

LAION = SourceConfig(paths=("laion/*.tar",))
PANDA = SourceConfig(paths=("panda70m/*.tar",))
JOINT = "univid_joint.safetensors"  # the result of that run, in its folder
BASE = "univid-untrained.safetensors"  # `python -m univid import` of Stable Diffusion 2.1 and a vision tower
SMALLEST = 64 * 64  # pixels of a bucket


def univid_t2v() -> Recipe:
    """Stage 1: from Stable Diffusion 2.1 to videos from text."""
    return _stage("univid_t2v", "t2v", start=None, seed=101, steps=100_000)


def univid_adapters() -> Recipe:
    """Stage 2: pictures, through the image projection and the dual cross-attention."""
    return _stage("univid_adapters", "adapters", start="univid_t2v", seed=102, steps=25_000)


def univid_joint() -> Recipe:
    """Stage 3: everything, under text, picture and both."""
    return _stage("univid_joint", "joint", start="univid_adapters", seed=103, steps=50_000)


def univid_turbo() -> Recipe:
    """A LoRA for 4 steps without guidance, from the finished model.

    paper: LCM-LoRA (2311.05556), rank 64, guidance 7.5, 50 intervals, 1e-4; we: clips of 8 to 24 frames,
    batch and steps of two hours on eight GPUs.
    """
    return Recipe(
        name="univid_turbo",
        seed=104,
        steps=5000,
        batch={"video": 32},
        optim=OptimConfig(lr=1e-4, warmup_steps=500, decay="constant", ema_decay=0.995),
        options=DenoiseOptions(
            stage="distill",
            data=DataConfig(clips=PANDA),
            base=JOINT,
            lora=LoraConfig(rank=64, alpha=64),
            noise=NoiseOptions(distill=DistillOptions(intervals=50, guidance=7.5)),
            frozen_dtype="bfloat16",
        ),
        engine=EngineConfig(micro_batch={"video": 1}, checkpointing=True),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=500, validate_every=500, sample_every=500, tensorboard=True),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (univid_t2v, univid_adapters, univid_joint, univid_turbo)
}


def _stage(name: str, stage: str, *, start: str | None, seed: int, steps: int) -> Recipe:
    return Recipe(
        name=name,
        seed=seed,
        steps=steps,
        batch={"image": 256, "frame": 256, "video": 256},
        optim=OptimConfig(lr=1e-5, warmup_steps=1000, decay="constant", ema_decay=0.9999),
        options=DenoiseOptions(
            stage=stage,
            data=DataConfig(images=LAION, clips=PANDA),
            base=BASE,
            start=start,
            noise=NoiseOptions(offset=0.1),
            frozen_dtype="bfloat16",
        ),
        engine=EngineConfig(micro_batch={"image": 4, "frame": 4, "video": 1}, checkpointing=True),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=1000, validate_every=1000, sample_every=1000, tensorboard=True),
    )


def finetune(
    base: str = native.BUILT_IN,
    data: str | Path = "clips",
    *,
    name: str = "finetune",
    full: bool = False,
    lora: LoraConfig | None = None,
    steps: int = 1000,
) -> Recipe:
    """A recipe for a folder of some clips with captions: a LoRA, or with `full` the whole network.

    Area, number of frames and frame rate are those that the base is sampled with.

    Raises:
        ValueError: a base that cannot be read, or both `full` and a LoRA.
    """
    if full and lora is not None:
        raise ValueError("expected full or a LoRA, got both; leave one out.")
    _, profile = describe_base(str(base))
    small = max(profile.height, profile.width) < 256  # a network for a CPU, where bfloat16 is slow
    return Recipe(
        name=name,
        seed=0,
        steps=steps,
        batch={"video": 2},
        optim=OptimConfig(lr=1e-5 if full else 1e-4, warmup_steps=20, decay="constant", ema_decay=0.99),
        options=DenoiseOptions(
            stage="full" if full else "lora",
            data=_own_clips(str(data), profile),
            base=str(base),
            lora=None if full else lora or LoraConfig(),
            frozen_dtype="float32" if small else "bfloat16",
        ),
        engine=EngineConfig(micro_batch={"video": 1}, checkpointing=not small),
        dtype="float32" if small else "bfloat16",
        logs=LogsConfig(save_every=250, validate_every=100, sample_every=100),
    )


def _own_clips(folder: str, profile: SamplingProfile) -> DataConfig:
    return DataConfig(
        clips=SourceConfig(paths=(folder,)),
        buckets=buckets_of(max(profile.height * profile.width, SMALLEST)),
        min_frames=profile.frames,
        max_frames=profile.frames,
        fps=profile.fps,
        reference="random" if profile.inputs.concat == "none" else "first",
        max_bad_share=0.25,
    )
