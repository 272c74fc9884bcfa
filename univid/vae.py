"""Stable Diffusion's autoencoder (AutoencoderKL) at any width: frames to latents and back.

Modules are named as in LDM's single files, so their `first_stage_model.` tensors load without renaming.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import VAEConfig
from .tiles import blended

CHUNK = 8  # frames at a time


class Autoencoder(nn.Module):
    """Encode videos to final latents (`scale` times the raw ones) and decode them, frame by frame.

    Source: LDM (Rombach et al., 2112.10752). Every layer comes from `operations`; there are no buffers.
    """

    def __init__(self, config: VAEConfig, operations=nn):
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config, operations)
        self.decoder = Decoder(config, operations)
        self.quant_conv = operations.Conv2d(moments, moments, 1)
        self.post_quant_conv = operations.Conv2d(config.latent_channels, config.latent_channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        *,
        generator: torch.Generator | None = None,
        chunk: int = CHUNK,
        tile: int | None = None,
    ) -> Tensor:
        """Video `[b 3 t h w]` in -1..1 to final latents `[b 4 t h/8 w/8]`.

        Args:
            generator: draws a sample of the posterior; None takes its mean.
            chunk: frames at a time; changes memory, not the result.
            tile: side of a tile in latent cells, None = whole frames. Tiles overlap by a quarter and are
                blended linearly; near the whole frame, not equal: normalisation and attention see one tile.

        Raises:
            ValueError: height or width is not a multiple of the factor (8), or `tile` is below 2.
        """
        factor = self.config.factor
        self._check_size(video)
        height, width = (side // factor for side in video.shape[-2:])

        def moments(images: Tensor) -> Tensor:
            return blended(lambda part: self._raw_moments(part.of(images, factor)), height, width, tile)

        frames = rearrange(video, "b c t h w -> (b t) c h w")
        mean, logvar = _split(torch.cat([moments(images) for images in frames.split(chunk)]))
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=generator.device)
            mean = mean + (logvar / 2).exp() * noise.to(mean)
        return self.config.scale * rearrange(mean, "(b t) c h w -> b c t h w", b=len(video))

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        chunk: int = CHUNK,
        tile: int | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Final latents `[b 4 t h w]` to video `[b 3 t 8h 8w]`, about -1..1, not clamped.

        Args:
            chunk, tile: as in `encode`.
            callback: called as (frames done, frames in all) after every chunk.

        Raises:
            ValueError: `tile` is below 2.
        """
        factor, (height, width) = self.config.factor, latents.shape[-2:]

        def images(cells: Tensor) -> Tensor:
            return blended(lambda part: self.decode_images(part.of(cells)), height, width, tile, factor)

        frames = rearrange(latents, "b c t h w -> (b t) c h w")
        video = None
        done = 0
        for cells in frames.split(chunk):
            decoded = images(cells)
            if video is None:  # filled piece by piece: what is joined at the end is there twice
                video = decoded.new_empty(len(frames), *decoded.shape[1:])
            video[done : done + len(cells)] = decoded
            done += len(cells)
            if callback is not None:
                callback(done, len(frames))
        return rearrange(video, "(b t) c h w -> b c t h w", b=len(latents))

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior of images `[n 3 h w]`, each `[n 4 h/8 w/8]`, unscaled.

        Raises:
            ValueError: height or width is not a multiple of the factor (8).
        """
        self._check_size(images)
        return _split(self._raw_moments(images))

    def decode_images(self, latents: Tensor) -> Tensor:
        """Final latents `[n 4 h w]` to images `[n 3 8h 8w]`."""
        return self.decoder(self.post_quant_conv(latents.to(self.dtype) / self.config.scale))

    def _raw_moments(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images.to(self.dtype)))  # [n 8 h/8 w/8]

    def _check_size(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor or not height or not width:
            raise ValueError(
                f"height and width must be positive multiples of {factor}, got {height} x {width}; "
                "crop or resize the frames."
            )


class Encoder(nn.Module):
    """Images `[n 3 h w]` to moments `[n 8 h/8 w/8]` before `quant_conv`."""

    def __init__(self, config: VAEConfig, operations):
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        top = widths[-1]
        self.conv_in = operations.Conv2d(config.in_channels, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        incoming = config.channels
        for level, width in enumerate(widths):
            stage = _stage(incoming, width, config.num_res_blocks, config.norm_groups, operations)
            last = level == len(widths) - 1
            stage.downsample = nn.Identity() if last else Downsample(width, operations)
            self.down.append(stage)
            incoming = width
        self.mid = Middle(top, config.norm_groups, operations)
        self.norm_out = operations.GroupNorm(config.norm_groups, top, eps=1e-6)
        self.conv_out = operations.Conv2d(top, 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            x = stage.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents `[n 4 h w]` after `post_quant_conv` to images `[n 3 8h 8w]`."""

    def __init__(self, config: VAEConfig, operations):
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.conv_in = operations.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups, operations)
        self.up = nn.ModuleList()  # indexed from the finest level, as in LDM; runs from the coarsest
        for level, (width, incoming) in enumerate(zip(widths, widths[1:] + widths[-1:], strict=True)):
            stage = _stage(incoming, width, config.num_res_blocks + 1, config.norm_groups, operations)
            stage.upsample = Upsample(width, operations) if level > 0 else nn.Identity()
            self.up.append(stage)
        self.norm_out = operations.GroupNorm(config.norm_groups, widths[0], eps=1e-6)
        self.conv_out = operations.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x)
            x = stage.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _stage(incoming: int, width: int, depth: int, groups: int, operations) -> nn.Module:
    """The residual blocks of one level; the caller hangs a change of resolution beside them."""
    stage = nn.Module()
    inputs = [incoming] + [width] * (depth - 1)
    stage.block = nn.ModuleList(ResBlock(channels, width, groups, operations) for channels in inputs)
    return stage


class Middle(nn.Module):
    """Two residual blocks around the only attention, at the coarsest level."""

    def __init__(self, channels: int, groups: int, operations):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups, operations)
        self.attn_1 = Attention(channels, groups, operations)
        self.block_2 = ResBlock(channels, channels, groups, operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResBlock(nn.Module):
    """Two 3x3 convolutions after norm and SiLU, added to the input."""

    def __init__(self, incoming: int, width: int, groups: int, operations):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, incoming, eps=1e-6)
        self.conv1 = operations.Conv2d(incoming, width, 3, padding=1)
        self.norm2 = operations.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = operations.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Identity() if incoming == width else operations.Conv2d(incoming, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.nin_shortcut(x) + hidden


class Attention(nn.Module):
    """One head over all positions of a frame."""

    def __init__(self, channels: int, groups: int, operations):
        super().__init__()
        self.norm = operations.GroupNorm(groups, channels, eps=1e-6)
        self.q = operations.Conv2d(channels, channels, 1)
        self.k = operations.Conv2d(channels, channels, 1)
        self.v = operations.Conv2d(channels, channels, 1)
        self.proj_out = operations.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        q, k, v = (rearrange(layer(hidden), "n c h w -> n 1 (h w) c") for layer in (self.q, self.k, self.v))
        hidden = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(hidden, "n 1 (h w) c -> n c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Half the height and width."""

    def __init__(self, channels: int, operations):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as Stable Diffusion was trained


class Upsample(nn.Module):
    """Twice the height and width: nearest, then 3x3."""

    def __init__(self, channels: int, operations):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _split(moments: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = moments.chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)  # LDM's bounds: exp() stays finite
