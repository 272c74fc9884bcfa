"""Stage: the autoencoder on single frames of the procedural set."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from training.config import Recipe
from training.distributed import share
from training.rng import generator
from training.saved import FINAL, load, take_over
from training.task import MicroBatch
from univid import checkpoints
from univid.presets import TINY
from univid.vae import Autoencoder

from . import shapes
from .painter import Painter
from .scorer import agreement, read

VALIDATION_SEED = 999_983


class AutoencoderTask:
    """Reconstruction (L1 + squared error) and a light KL, which keeps the latents smooth for the U-Net."""

    def __init__(self, recipe: Recipe, root: Path, device: torch.device | str = "cpu"):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        start = recipe.options.start
        if start is None:
            self.module = Autoencoder(TINY.vae)
        else:
            self.module = checkpoints.load(start, dtype=torch.float32, parts=("vae",)).vae
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
        self.painter = Painter(device)

    def parameter_groups(self) -> list[dict]:
        return [{"name": "vae", "params": [p for p in self.module.parameters() if p.requires_grad]}]

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """Single frames, with the noise of their latents' posterior."""
        size = self.recipe.batch["image"]
        rng = generator(self.recipe.seed, "frames", step, self.painter.device)
        scenes = torch.randint(len(self.painter.all), (size,), generator=rng, device=self.painter.device)
        times = torch.rand(size, 1, generator=rng, device=self.painter.device)
        images = self.painter.videos(scenes, times, rng, self.recipe.options.size)[:, :, 0]
        config = self.module.config
        shrunk = [side // 2 ** (len(config.channel_mult) - 1) for side in images.shape[2:]]
        noise = torch.randn(size, config.latent_channels, *shrunk, generator=rng, device=self.painter.device)
        mine = share(range(size))
        picked = slice(mine.start, mine.stop, mine.step)
        yield MicroBatch("image", 1.0, (images[picked], noise[picked]))

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, noise = batch
        mean, logvar = self.module.encode_moments(images)
        latents = mean + (logvar / 2).exp() * noise
        error = self.module.decode_images(self.module.config.scale * latents).float() - images
        # The plain background fills nine tenths of a frame; the shape, which is saturated, has to count.
        chroma = images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
        error = error * (1 + 2 * (chroma > 0.1))
        l1, l2 = error.abs().mean(), error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).float().mean()
        return l1 + l2 + self.recipe.options.kl_weight * kl, {"l1": l1.detach(), "kl": kl.detach()}

    def validate(self, module: Autoencoder) -> dict[str, float]:
        return reconstruction_figures(module, clips=36, size=self.recipe.options.size)


@torch.no_grad()
def reconstruction_figures(vae: Autoencoder, clips: int, size: int = 64) -> dict[str, float]:
    """PSNR (dB) and the scorer's agreement, over the words, on reconstructions of true clips."""
    squared, right = 0.0, []
    device = next(vae.parameters()).device
    for index in range(clips):
        truth, scene = shapes.clip(index, seed=VALIDATION_SEED, size=size, scenes=shapes.SCENES)
        video = shapes.to_video(torch.from_numpy(truth)[None].to(device))
        decoded = vae.decode(vae.encode(video)).clamp(-1, 1)
        squared += (decoded - video).square().mean().item() / 4 / clips
        pixels = rearrange(decoded, "1 c t h w -> t h w c").add(1).mul(127.5).round().byte().cpu().numpy()
        right.append(agreement(read(pixels), scene))
    words = {word: sum(r[word] for r in right) / clips for word in right[0]}
    return {"psnr": -10 * math.log10(squared)} | words


def frozen_vae(folder: Path) -> Autoencoder:
    """The finished autoencoder of a run, its latents scaled, ready for the next stages."""
    vae, path = Autoencoder(TINY.vae), folder / FINAL
    take_over(vae, load(path)["ema"], path)
    frames, _ = shapes.batch(range(256), seed=VALIDATION_SEED, scenes=shapes.SCENES, stills=True)
    fold_scale(vae, rearrange(shapes.to_video(frames), "b c 1 h w -> b c h w"))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def fold_scale(vae: Autoencoder, images: Tensor) -> None:
    """Give each latent channel mean 0 and, after `scale`, deviation 1 over `images` `[n 3 h w]`.

    Factor and offset go into `quant_conv` and `post_quant_conv`, so that the fixed scale 0.18215 of Stable
    Diffusion, which hosts assume, is right for this autoencoder too. Reconstructions stay as they are.
    """
    mean, _ = vae.encode_moments(images)
    shift = mean.mean((0, 2, 3))
    gain = 1 / (vae.config.scale * (mean - shift[:, None, None]).std((0, 2, 3)))
    channels = vae.config.latent_channels
    out, into = vae.quant_conv, vae.post_quant_conv
    out.bias[:channels] = (out.bias[:channels] - shift) * gain
    out.weight[:channels] *= gain[:, None, None, None]
    out.bias[channels:] += 2 * gain.log()
    into.bias += into.weight[:, :, 0, 0] @ shift
    into.weight /= gain[None, :, None, None]
