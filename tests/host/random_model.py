"""A UniVid checkpoint with random weights."""

import dataclasses
from pathlib import Path

import torch


def write(
    folder: Path,
    model_channels: int = 16,
    zero_terminal_snr: bool = False,
    first: int | None = None,
    num_res_blocks: int = 2,
) -> Path:
    """A file with nothing but a U-Net of Stable Diffusion's layout, every weight at random.

    Text tokens have width 24, image tokens 20, and frames know their place in the clip. Sampling starts at
    the timestep `first`; None = the last.
    """
    from univid_pack.univid import presets
    from univid_pack.univid.checkpoints.native import meta_modules, save
    from univid_pack.univid.model import UniVid

    tiny = presets.PRESETS["tiny"]
    unet = dataclasses.replace(
        tiny.unet, model_channels=model_channels, channel_mult=(1, 2, 4, 4),
        num_res_blocks=num_res_blocks, head_channels=16, norm_groups=8, context_dim=24,
        image_stream=dataclasses.replace(tiny.unet.image_stream, width=20),
    )  # fmt: skip
    schedule = dataclasses.replace(tiny.schedule, zero_terminal_snr=zero_terminal_snr)
    small = dataclasses.replace(tiny, unet=unet, schedule=schedule, vae=None, text=None, vision=None)
    parts = meta_modules(small)
    generator = torch.Generator().manual_seed(0)
    for parameter in parts["unet"].to_empty(device="cpu").parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
        parameter.data.normal_(std=fan_in**-0.5, generator=generator)
    start = dataclasses.replace(presets.FROM_NOISE, timestep=first)
    profile = dataclasses.replace(presets.PROFILES["tiny"], start=start)
    file = folder / f"random-{model_channels}-{zero_terminal_snr}-{first}.safetensors"
    save(file, UniVid(small, profile, info={}, **parts))
    return file
