"""What a node shows: the clip as it is so far, then a picture or the clip that it made."""

import logging
import uuid
from pathlib import Path

import av
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import Image
from torch import Tensor

from ...univid.vae import Autoencoder
from ...univid.video import to_uint8
from .decode import as_image, spread

FRAMES_SHOWN = 4
SIZE = 512  # pixels along the longer side
NO_PICTURE = {"images": []}  # takes away what an earlier run left on the node

logger = logging.getLogger(__name__)


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


def picture_of(node: type[io.ComfyNode], picture: np.ndarray | Image.Image) -> dict | ui.PreviewImage:
    """The `ui` of a node that sampled and shows a picture, uint8 `[h w 3]` or Pillow's, of what it found.

    The interface keeps the last preview of a node, above its pictures or in their place. So where previews
    are on the picture becomes the last of them, else a picture of the node: it is seen once.
    """
    image = Image.fromarray(np.asarray(picture))
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return ui.PreviewImage(as_image(image), cls=node)
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("JPEG", image, max(image.size)))
    return NO_PICTURE


def clip_of(video) -> ui.PreviewVideo | None:
    """The `ui` of a node that shows a VIDEO: a file in the host's temporary folder, none in its outputs.

    A clip that cannot be written is only not shown: its frames are there, and may have taken hours.
    """
    file = Path(folder_paths.get_temp_directory(), f"univid_{uuid.uuid4().hex}.mp4")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        video.save_to(str(file))
    except (OSError, av.FFmpegError) as error:
        logger.warning("UniVid: the clip is decoded but cannot be shown on the node (%s)", error)
        return None
    return ui.PreviewVideo([ui.SavedResult(file.name, "", io.FolderType.temp)])
