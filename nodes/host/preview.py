"""What a node shows: the clip as it is so far, then a picture or the clip that it made."""

import io as streams
import logging
import time
import uuid
from pathlib import Path

import av
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import Image
from torch import Tensor

from ...univid.vae import Autoencoder
from .decode import as_image, spread

FRAMES_SHOWN = 16  # of a clip that plays
SIZE = 256  # pixels along its longer side at most
PAUSE = 4  # so many times as long as a preview took, the next one waits: a fifth of the time at most
STRIP = 4  # frames side by side, where a sampler of the host shows a still picture
NO_PICTURE = {"images": []}  # takes away what an earlier run left on the node

logger = logging.getLogger(__name__)


class ClipPreviewer(latent_preview.LatentPreviewer):
    """Every frame as one of the host's previewers draws it, as a clip that plays; not at every step."""

    def __init__(self, host: latent_preview.LatentPreviewer, fps: float):
        self.host, self.fps, self.due = host, fps, 0.0

    def decode_latent_to_preview_image(self, preview_format: str, x0: Tensor):
        """What a progress bar takes, of latents `[t 4 h w]`; None where the last preview shall stay."""
        start = time.monotonic()
        if start < self.due:
            return None
        frames = [self.host.decode_latent_to_preview(latent[None]) for latent in spread(x0, FRAMES_SHOWN)]
        side = min(SIZE, latent_preview.MAX_PREVIEW_RESOLUTION)
        for frame in frames:
            frame.thumbnail((side, side), Image.Resampling.BICUBIC)
        clip = playing(frames, len(x0) / self.fps)
        self.due = time.monotonic() + PAUSE * (time.monotonic() - start)
        return "PNG", clip, None


def playing(frames: list[Image.Image], seconds: float) -> Image.Image:
    """The first frame, which the host sends as all of them: as an animated PNG.

    The host writes a preview by its `save`, and tells JPEG and PNG apart. Who cannot play an animated PNG, or
    changes the picture before, has the first frame.
    """
    file, still = streams.BytesIO(), frames[0].copy()
    frames[0].save(
        file, "PNG", save_all=True, append_images=frames[1:], duration=1000 * seconds / len(frames), loop=0,
        compress_level=1,
    )  # fmt: skip

    def save(to, format: str | None = None, **options) -> None:
        if format == "PNG":
            to.write(file.getvalue())
        else:
            Image.Image.save(still, to, format, **options)

    still.save = save
    return still


def previewer_of(model) -> latent_preview.LatentPreviewer | None:
    """What draws previews of a MODEL; None where the user has switched them off.

    Previewers that another pack puts in the place of the host's stay as they are.
    """
    core = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    send = latent_preview.LatentPreviewer.decode_latent_to_preview_image
    if core is None or type(core).decode_latent_to_preview_image is not send:
        return core
    return ClipPreviewer(core, model.model.univid_profile.fps)


def draw_with(vae: Autoencoder, latent_format) -> None:
    """Let the host draw what latents of a format show with their own VAE.

    The tables for Stable Diffusion's would mislead. Of several frames the host's samplers get a strip.
    """

    def strip(x0: Tensor) -> Tensor:  # [t 4 h w] -> [1 4 h w], RGB and a channel that the table leaves out
        with torch.inference_mode():
            images = vae.decode_images(spread(x0, STRIP).cpu()).float()
        return F.pad(rearrange(images, "n c h w -> 1 c h (n w)"), (0, 0, 0, 0, 0, 1))

    latent_format.taesd_decoder_name = None
    latent_format.latent_rgb_factors = np.eye(4, 3).tolist()
    latent_format.latent_rgb_factors_reshape = strip


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
