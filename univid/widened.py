"""A network that takes more than it did: joined latents and numbers, silent at first.

So a base becomes a model that animates, continues or fills in clips, and starts where the base is.
"""

import dataclasses

import torch

from .attention import AttentionFunction, attention
from .config import KNOWN, NUMBERS, NumberInput, UNetConfig
from .model import UniVid
from .unet import UNet


def widened_config(config: UNetConfig, concat: str, noise: bool) -> UNetConfig:
    """The architecture with room for joined latents of a kind; noise: and for being told of noise on them."""
    return dataclasses.replace(
        config,
        in_channels=2 * config.in_channels + (concat in KNOWN),
        numbers=(*config.numbers, "noise") if noise else config.numbers,
    )


def widened(
    model: UniVid, concat: str, noise: float | None = None, kernel: AttentionFunction = attention
) -> UniVid:
    """The same model, with weights of zero for what its U-Net takes beside the latents.

    Args:
        concat: a kind of joined latents, as of the sampling profile.
        noise: told of known frames where nothing else is said, 0 to 1 of the latents' deviation; None = the
            network is not told of any.
        kernel: of the new network's attention.

    Raises:
        ValueError: the model already takes joined latents or that number.
    """
    old, inputs = model.config.unet, model.profile.inputs
    if old.in_channels != old.out_channels or inputs.concat != "none" or "noise" in old.numbers:
        raise ValueError(
            f"expected a model that takes nothing but latents, got one of {old.in_channels} channels with "
            f"concat {inputs.concat!r}; take its base."
        )
    told = () if noise is None else (NumberInput("noise", 1000 * noise, NUMBERS["noise"][0]),)
    config = widened_config(old, concat, noise is not None)
    inputs = dataclasses.replace(inputs, concat=concat, numbers=inputs.numbers + told)
    weight = next(model.unet.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the number's first layer, whose answer the second one keeps silent
        unet = UNet(config, attention=kernel).to(weight.device, weight.dtype)
    state = model.unet.state_dict()
    first = state["input_blocks.0.0.weight"]
    more = first.new_zeros(first.shape[0], config.in_channels - first.shape[1], *first.shape[2:])
    state["input_blocks.0.0.weight"] = torch.cat([first, more], 1)
    for number in told:
        layers = unet.number_embedding(number.name)
        for silent in layers[2].parameters():
            torch.nn.init.zeros_(silent)
        state |= {f"{number.name}_embedding.{name}": value for name, value in layers.state_dict().items()}
    unet.load_state_dict(state)
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, unet=config),
        profile=dataclasses.replace(model.profile, inputs=inputs),
        unet=unet.eval(),
    )
