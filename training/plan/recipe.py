"""From a recipe to the workload that a plan counts."""

import dataclasses
from functools import partial
from pathlib import Path

import torch

from training.config import Recipe
from training.options import DenoiseOptions
from training.recipes_cascade import ZEROSCOPE
from training.stages import networks
from training.stages.base import describe_base
from univid.checkpoints import native
from univid.config import ModelConfig
from univid.narrowed import narrowed_config
from univid.presets import PRESETS
from univid.widened import widened_config

from .workload import Workload

STAND_INS = {ZEROSCOPE: "family"}  # presets of bases that are not there yet
DATASETS = {"image": 600_000_000, "clip": 6_000_000}  # paper (IV-A): of LAION, and of Panda-70M


def workload_of(recipe: Recipe, prepared: bool = False) -> Workload:
    """The workload of a recipe that trains the U-Net on real data.

    A base that is not there yet counts as the paper's network, or as the one whose name a recipe gives it.

    Raises:
        ValueError: a recipe that trains something else.
    """
    options = recipe.options
    if not isinstance(options, DenoiseOptions):
        raise ValueError(
            "expected a recipe on real data (univid_t2v and others at full size, or finetune), got "
            f"{recipe.name}; its cost is seconds."
        )
    shows = {
        "picture": any(weights[1] for _, weights in networks.STAGES[options.stage].modes),
        "copy": options.data.degradations is not None,
        "teacher": options.noise.distill is not None,
    }
    data = {"image": options.data.images, "clip": options.data.clips}
    whole = options.lora is None and options.stage not in ("full", "distill")
    dataset = {kind: size for kind, size in DATASETS.items() if whole and data[kind] is not None}
    frozen = getattr(torch, options.frozen_dtype) if options.lora is not None else torch.float32
    return Workload(
        name=recipe.name,
        model=config_of(options),
        arrange=partial(networks.arrange, options=options, seed=recipe.seed),
        steps=recipe.steps,
        batch=recipe.batch,
        frames=(options.data.min_frames, options.data.max_frames),
        buckets=options.data.buckets,
        shows=tuple(name for name, shown in shows.items() if shown),
        prepared=prepared,
        dtype=getattr(torch, recipe.dtype),
        frozen_dtype=frozen,
        dataset=dataset,
    )


def config_of(options: DenoiseOptions) -> ModelConfig:
    """The architecture that a run trains: its base's, from the header alone, as the stage takes it."""
    base, asked = options.base, options.joined
    there = base in PRESETS or base in native.ASSETS or Path(base).expanduser().exists()
    config, profile = describe_base(base if there else STAND_INS.get(base, "paper"))
    unet = config.unet
    if networks.STAGES[options.stage].upscales:
        unet = narrowed_config(unet)
    if asked is not None and profile.inputs.concat == "none":
        unet = widened_config(unet, asked.concat, bool(asked.noise))
    return dataclasses.replace(config, unet=unet)
