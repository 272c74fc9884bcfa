"""Clips of the procedural set as what the U-Net trains on: latents, caption tokens, image tokens.

The VAE and the towers are frozen by then, so latents and caption tokens are computed once and kept in a file.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training import distributed
from univid.encoders import ImageEncoder, TextEncoder
from univid.files.output import new_file
from univid.messages import shown
from univid.vae import Autoencoder

from . import shapes

log = logging.getLogger(__name__)
EMPTY = ""


@dataclass(frozen=True)
class Features:
    """`n` clips. latents: final, `[n 4 t h w]` float16. image_tokens: of every frame, `[n t m d]` float16.

    scenes: `[n]` indices into shapes.SCENES.
    """

    latents: Tensor
    image_tokens: Tensor
    scenes: Tensor


def prepare(
    folder: Path, vae: Autoencoder, vision: ImageEncoder, *, seed: int, clips: int, frames: int
) -> Features:
    """Features of clips 0 .. clips - 1 of the set `seed`, from the cache in `folder` when it is there.

    The cache's name holds a digest of the weights, so another VAE or tower never meets old features.
    """
    digest = hashlib.sha256()
    for tensor in (*vae.state_dict().values(), *vision.state_dict().values()):
        digest.update(tensor.numpy().tobytes())
    path = folder / f"features_{digest.hexdigest()[:12]}_{seed}_{clips}x{frames}.pt"
    # One process writes, the others wait for it.
    if distributed.rank() == 0 and _kept(path, clips, frames) is None:
        found = _compute(vae, vision, seed, clips, frames)
        with new_file(path) as temporary, open(temporary, "wb") as file:
            torch.save(vars(found), file)
    distributed.barrier()
    found = _kept(path, clips, frames)
    if found is None:
        raise ValueError(f"{shown(path)} cannot be read, though it was just written; look at the disk.")
    return found


def _kept(path: Path, clips: int, frames: int) -> Features | None:
    """What the cache holds; None if there is none, or a damaged one."""
    try:
        found = Features(**torch.load(path, weights_only=True, mmap=True))
        right = found.latents.shape[::2][:2] == (clips, frames) and len(found.scenes) == clips
        return found if right and found.image_tokens.shape[:2] == (clips, frames) else None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes PyTorch raise many things
        log.debug("%s is made anew: %s", path, error)
        return None


@torch.inference_mode()
def _compute(vae: Autoencoder, vision: ImageEncoder, seed: int, clips: int, frames: int) -> Features:
    latents, tokens, scenes = [], [], []
    order = {scene: index for index, scene in enumerate(shapes.SCENES)}
    for index in tqdm(range(clips), desc="features", mininterval=10):
        pixels, scene = shapes.clip(index, seed=seed, frames=frames)
        video = shapes.to_video(torch.from_numpy(pixels)[None])
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(video, chunk=frames)[0].half())
            tokens.append(vision(video[0].transpose(0, 1)).half())
        scenes.append(order[scene])
    return Features(torch.stack(latents), torch.stack(tokens), torch.tensor(scenes))


class CaptionTokens:
    """Tokens of every caption of the grammar, of every still caption, and of the empty prompt."""

    @torch.inference_mode()
    def __init__(self, encoder: TextEncoder):
        captions = [
            EMPTY,
            *(s.caption for s in shapes.SCENES),
            *sorted({s.still_caption for s in shapes.SCENES}),
        ]
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.table = encoder(captions).float().clone()  # [k n d]

    def __call__(self, captions: list[str]) -> Tensor:
        """Text tokens `[b n d]`."""
        return self.table[[self.rows[caption] for caption in captions]]
