"""Live previews: the clip as it is so far, on the node that makes it."""

import comfy.utils
import latent_preview
import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ...univid.vae import Autoencoder
from ...univid.video import to_uint8
from .decode import spread

FRAMES_SHOWN = 4
SIZE = 512  # pixels along the longer side


class OwnPreviewer(latent_preview.LatentPreviewer):
    """A strip of frames through the model's own VAE, where the tables for Stable Diffusion's mislead."""

    def __init__(self, vae: Autoencoder):
        self.vae = vae

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        latents = spread(x0, FRAMES_SHOWN).cpu()
        with torch.inference_mode():
            video = rearrange(self.vae.decode_images(latents).float(), "t c h w -> 1 c t h w")
        strip = Image.fromarray(rearrange(to_uint8(video), "t h w c -> h (t w) c"))
        zoom = max(1, SIZE // strip.width)
        return strip.resize((zoom * strip.width, zoom * strip.height), Image.Resampling.BICUBIC)


def previewer_of(model) -> latent_preview.LatentPreviewer | None:
    """What draws previews of a MODEL; None where the user has switched them off."""
    core = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    return core and (model.model.univid_previewer or core)


def show(picture: np.ndarray | Image.Image) -> None:
    """Leave a picture, uint8 `[h w 3]` or Pillow's, where the previews were: the interface keeps the last."""
    image = Image.fromarray(np.asarray(picture))
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("JPEG", image, max(image.size)))
