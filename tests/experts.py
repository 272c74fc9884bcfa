"""Small models of the cascade's stages, made of a base with random weights."""

import dataclasses

import torch

from univid.config import BiasedNoiseProfile, StartProfile
from univid.model import UniVid
from univid.widened import widened


def knowing(base: UniVid, noise: float | None = None) -> UniVid:
    """The base with weights for known frames, not silent any more; noise: as of `widened`."""
    model = widened(base, "known", noise)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.unet.named_parameters():
            if name == "input_blocks.0.0.weight":
                weight[:, 4:] = 0.3 * torch.randn(weight[:, 4:].shape, generator=generator)
            elif name.startswith("noise_embedding.2"):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def upscaling(base: UniVid, t_n: float = 700, **profile) -> UniVid:
    """The base as a model that refines an enlarged video by biased noise; profile: other fields of its."""
    start = StartProfile(None, 1.0, BiasedNoiseProfile(0, t_n))
    return dataclasses.replace(base, profile=dataclasses.replace(base.profile, start=start, **profile))
