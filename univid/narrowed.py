"""A network without PSTAttn, which on latents of 720p costs as much as all else together."""

import dataclasses

import torch

from .config import UNetConfig
from .model import UniVid
from .unet import UNet


def narrowed_config(config: UNetConfig) -> UNetConfig:
    """The architecture without PSTAttn."""
    return dataclasses.replace(config, temporal=dataclasses.replace(config.temporal, segment_frames=()))


def narrowed(model: UniVid) -> UniVid:
    """The same model without PSTAttn; where that was silent, as of an image trunk, it gives what it gave."""
    config, weight = narrowed_config(model.config.unet), next(model.unet.parameters())
    with torch.device("meta"):
        unet = UNet(config, dtype=weight.dtype)
    state = model.unet.state_dict()
    unet.load_state_dict({name: state[name] for name in unet.state_dict()}, assign=True)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, unet=config), unet=unet.eval())
