"""From a recipe to the workload that a plan counts."""

from pathlib import Path

import torch

from training.config import Recipe
from training.lora import add_lora
from training.options import DenoiseOptions
from training.stages import networks
from training.stages.base import describe_base
from univid.checkpoints import native
from univid.config import ModelConfig
from univid.presets import PAPER, PRESETS
from univid.unet import UNet

from .workload import Workload

DATASETS = {"image": 600_000_000, "clip": 6_000_000}  # paper (IV-A): of LAION, and of Panda-70M


def workload_of(recipe: Recipe, prepared: bool = False) -> Workload:
    """The workload of a recipe that trains the U-Net on real data.

    A base that is not there yet counts as the paper's network.

    Raises:
        ValueError: a recipe that trains something else.
    """
    options = recipe.options
    if not isinstance(options, DenoiseOptions):
        raise ValueError(
            f"expected a recipe on real data (univid_t2v, univid_adapters, univid_joint or finetune), "
            f"got {recipe.name}; its cost is seconds."
        )
    stage = networks.STAGES[options.stage]

    def arrange(unet: UNet) -> None:
        if options.lora is not None:
            add_lora(unet, options.lora, recipe.seed)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(stage.trains(name))

    frozen = getattr(torch, options.frozen_dtype) if options.lora is not None else torch.float32
    return Workload(
        name=recipe.name,
        model=config_of(options.base),
        arrange=arrange,
        steps=recipe.steps,
        batch=recipe.batch,
        frames=(options.data.min_frames, options.data.max_frames),
        buckets=options.data.buckets,
        picture=any(weights[1] for _, weights in stage.modes),
        prepared=prepared,
        dtype=getattr(torch, recipe.dtype),
        frozen_dtype=frozen,
        dataset=DATASETS if options.lora is None and options.stage != "full" else {},
    )


def config_of(base: str) -> ModelConfig:
    """The architecture of a base, from its header alone."""
    there = base in PRESETS or base == native.BUILT_IN or Path(base).expanduser().exists()
    return describe_base(base)[0] if there else PAPER
