"""The memory that was measured against what univid/memory.py and `training plan` say of it."""

from collections.abc import Callable
from functools import partial

import torch

from univid import memory
from univid.presets import PAPER
from univid.vae import CHUNK

from . import networks
from .section import Section, has
from .timing import GIB, peak_bytes

OFF = ("<=", 0.15)
SIZES = {"24 x 320 x 576": (24, 40, 72), "48 x 320 x 576": (48, 40, 72), "24 x 720 x 1280": (24, 90, 160)}
SMALL_SIZES = {"4 x 64 x 64": (4, 8, 8), "8 x 128 x 128": (8, 16, 16)}


def run(section: Section) -> None:
    config = networks.preset(PAPER, section.small)
    sizes = SMALL_SIZES if section.small else SIZES
    sampling(section, config.unet, sizes)
    decoding(section, config, sizes)
    if not has("training.loop"):
        section.skipped("training", "lacks tqdm")
        return
    from . import steps

    for case in [*steps.WHOLE, *steps.LORA]:
        with section.part(f"training, {case}"):
            training = steps.Run(section, case)
            training.step()
            measured, _ = peak_bytes(training.step, section.device)
            del training
            compare(section, f"training, {case}", measured, partial(steps.planned, section, case))


def sampling(section: Section, config, sizes: dict) -> None:
    """What a forward of the U-Net takes beside its weights."""
    unet = networks.unet_of(config, section.device, section.dtype)
    for name, size in sizes.items():
        for clips in (1, 2):
            with section.part(f"U-Net, {clips} x {name}"):
                inputs = networks.inputs_of(config, size, section.device, section.dtype, clips)
                call = inputs.call(unet)
                call()
                _, measured = peak_bytes(call, section.device)
                cells = inputs.x[:, 0].numel()
                said = partial(memory.sampling, config, cells, section.dtype, section.device)
                compare(section, f"U-Net, {clips} x {name}", measured, said)


def decoding(section: Section, config, sizes: dict) -> None:
    """What a chunk of frames takes in the VAE's decoder beside its weights."""
    vae = networks.vae_of(config, section.device, section.dtype)
    for name, (_, height, width) in sizes.items():
        with section.part(f"VAE, {name}"):
            shape = (1, config.vae.latent_channels, CHUNK, height, width)
            latents = torch.randn(shape, device=section.device, dtype=section.dtype)
            coding = memory.Coding(
                config.vae, "decode", CHUNK, (height, width), section.dtype, section.device
            )
            said = partial(coding.needed, memory.Pieces())
            vae.decode(latents)
            _, measured = peak_bytes(lambda: vae.decode(latents), section.device)  # noqa: B023
            compare(section, f"VAE, {CHUNK} of {name}", measured, said)


def compare(section: Section, name: str, measured: int, said: Callable[[], int]) -> None:
    """Bytes; what is said takes seconds to count, so what was measured is printed first."""
    section.result(f"{name}: measured", measured / GIB, "GiB")
    estimate = said()
    section.result(f"{name}: said", estimate / GIB, "GiB")
    section.result(f"{name}: off by", abs(estimate / max(1, measured) - 1), "of it", goal=OFF)
