"""Networks with random weights, made on the device itself, and something for them to work on."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from univid.conditioning import Conditioning
from univid.config import ModelConfig, ResamplerConfig, UNetConfig
from univid.layers import even_places, reference_frames
from univid.presets import FAMILY, PAPER, TINY
from univid.unet import UNet
from univid.vae import Autoencoder

FULL_CLIP, SMALL_CLIP = (24, 40, 72), (4, 8, 8)  # frames, height and width of latents


def size_of(small: bool) -> tuple[int, int, int]:
    return SMALL_CLIP if small else FULL_CLIP


def preset(config: ModelConfig, small: bool) -> ModelConfig:
    """A preset, or if `small` one of its kind that takes a CPU a moment."""
    if not small:
        return config
    return dataclasses.replace(
        config,
        unet=narrow(config.unet),
        vae=dataclasses.replace(
            config.vae, channels=16, channel_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=8
        ),
    )


def narrow(config: UNetConfig, levels: int = 2) -> UNetConfig:
    """All kinds of layers of a network, few and narrow."""
    temporal, stream = config.temporal, config.image_stream
    temporal = dataclasses.replace(
        temporal,
        conv_kernels=temporal.conv_kernels[:levels],
        segment_frames=temporal.segment_frames[:levels],
        input_heads=None if temporal.input_heads is None else 2,
    )
    if stream is not None:
        stream = dataclasses.replace(stream, width=24)
    return dataclasses.replace(
        config, model_channels=16, channel_mult=(1, 2, 2, 2)[:levels], num_res_blocks=1, head_channels=16,
        attention_levels=(True, True, True, False)[-levels:], norm_groups=8, context_dim=32,
        temporal=temporal, image_stream=stream,
    )  # fmt: skip


def kinds(levels: int) -> dict[str, UNetConfig]:
    """A small network of each kind that there is."""
    paper, family = narrow(PAPER.unet, levels), narrow(FAMILY.unet, levels)
    resampler = ResamplerConfig(width=32, depth=2, heads=2, head_channels=16, tokens=4, frames=None)

    def relative(frames: int | None, channels: int) -> UNetConfig:
        stream = dataclasses.replace(
            paper.image_stream, resampler=dataclasses.replace(resampler, frames=frames)
        )
        return dataclasses.replace(family, image_stream=stream, numbers=("fps",), in_channels=channels)

    return {
        "paper": paper,
        "tiny, with places": narrow(TINY.unet, levels),
        "family: ModelScope": family,
        "family: VideoCrafter": relative(None, 4),
        "family: DynamiCrafter": relative(SMALL_CLIP[0], 8),
    }


def unet_of(config: UNetConfig, device, dtype: torch.dtype = torch.float32, seed: int = 0) -> UNet:
    """A U-Net whose every weight is random; its outputs are of about one."""
    with torch.device("meta"):
        unet = UNet(config, dtype=dtype)
    return filled(unet, device, seed)


def vae_of(config: ModelConfig, device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Autoencoder:
    with torch.device("meta"):
        vae = Autoencoder(config.vae).to(dtype)
    return filled(vae, device, seed)


@torch.no_grad()
def filled(module: nn.Module, device, seed: int = 0):
    """A module from the meta device with random weights on another one, frozen."""
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(mean=float("norm" in name and "weight" in name), std=0.1, generator=generator)
    return module.eval().requires_grad_(False)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a U-Net is called with. Nothing is left to be made during the call, which a CUDA graph forbids."""

    x: Tensor
    timesteps: Tensor
    cond: Conditioning
    reference_frames: dict[int, Tensor]
    streams: tuple[bool, bool]

    def call(self, unet: UNet) -> Callable[[], Tensor]:
        """One forward without gradients."""

        @torch.inference_mode()
        def run() -> Tensor:
            how = {"reference_frames": self.reference_frames, "streams": self.streams}
            return unet(self.x, self.timesteps, self.cond, **how)

        return run


def inputs_of(
    config: UNetConfig,
    size: tuple[int, int, int],
    device,
    dtype: torch.dtype = torch.float32,
    clips: int = 2,
    seed: int = 1,
) -> Inputs:
    """Latents of `size` (t, h, w). Two clips are both branches of guidance: all conditions, and none.

    The numbers are drawn on the CPU, the same for every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    frames, stream = size[0], config.image_stream
    extra = config.in_channels - config.out_channels
    weights = [[1.0, float(stream is not None)], [1.0, 0.0]][:clips]
    cond = Conditioning(
        text=randn(clips, 77, config.context_dim),
        image=None if stream is None else randn(clips, 257, stream.width),
        weights=torch.tensor(weights, device=device),
        concat=randn(clips, extra, *size) if extra else None,
        places=even_places(frames).expand(clips, -1).to(device),
        numbers={name: torch.full((clips,), 8.0, device=device) for name in config.numbers},
    )
    references = {
        factor: torch.as_tensor(reference_frames(frames, segment)).to(device)
        for factor, segment in zip(config.factors, config.temporal.segment_frames, strict=False)
    }
    x, timesteps = randn(clips, config.out_channels, *size), torch.full((clips,), 500, device=device)
    return Inputs(x, timesteps, cond, references, (True, stream is not None))
