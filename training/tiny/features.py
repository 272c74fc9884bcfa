"""Clips of the procedural set as what the U-Net trains on: latents, caption tokens, image tokens.

The VAE and the towers are frozen by then, so latents and caption tokens are computed once and kept in a file.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from training import distributed
from univid.encoders import ImageEncoder, TextEncoder
from univid.files.output import new_file
from univid.messages import shown
from univid.vae import Autoencoder

from . import shapes
from .draws import PICTURED
from .painter import Painter

log = logging.getLogger(__name__)
EMPTY = ""
BATCH = {"cpu": 4}  # clips that are encoded at a time; elsewhere more


@dataclass(frozen=True)
class Features:
    """`n` clips at `m` moments, on the device that trains.

    latents: final, `[n m 4 h w]` float16. image_tokens: of every PICTUREDth moment, `[n p k d]` float16.
    scenes: `[n]` indices into shapes.SCENES. off: `[n]`, how far paths lead past the middle, in sides, on the
    CPU.
    """

    latents: Tensor
    image_tokens: Tensor
    scenes: Tensor
    off: Tensor


def prepare(
    folder: Path,
    vae: Autoencoder,
    vision: ImageEncoder,
    *,
    seed: int,
    clips: int,
    moments: int,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of clips 0 .. clips - 1 of the set `seed`, from the cache in `folder` when it is there.

    The cache's name holds a digest of the weights, so another VAE or tower never meets old features. Both are
    moved to `device`, where the features are made and stay. Each process makes its share.
    """
    digest = hashlib.sha256()
    for tensor in (*vae.state_dict().values(), *vision.state_dict().values()):
        digest.update(tensor.cpu().numpy().tobytes())
    path = folder / f"features_{digest.hexdigest()[:12]}_{seed}_{clips}x{moments}.pt"
    if _kept(path, clips, moments) is None:
        parts = [path.with_suffix(f".part{index}") for index in range(distributed.processes())]
        mine = range(*(clips * (distributed.rank() + end) // len(parts) for end in (0, 1)))
        _save(
            _compute(vae.to(device), vision.to(device), seed, mine, moments, device),
            parts[distributed.rank()],
        )
        distributed.barrier()
        if distributed.rank() == 0:
            _save(_joined([torch.load(part, weights_only=True) for part in parts]), path)
            for part in parts:
                part.unlink()
    distributed.barrier()
    found = _kept(path, clips, moments)
    if found is None:
        raise ValueError(f"{shown(path)} cannot be read, though it was just written; look at the disk.")
    moved = {name: getattr(found, name).to(device) for name in ("latents", "image_tokens", "scenes")}
    return replace(found, **moved)


def _kept(path: Path, clips: int, moments: int) -> Features | None:
    """What the cache holds; None if there is none, or a damaged one."""
    try:
        found = Features(**torch.load(path, weights_only=True, mmap=True))
        right = found.latents.shape[:2] == (clips, moments) and len(found.scenes) == len(found.off) == clips
        return found if right and len(found.image_tokens) == clips else None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes PyTorch raise many things
        log.debug("%s is made anew: %s", path, error)
        return None


def _save(features: Features, path: Path) -> None:
    with new_file(path) as temporary, open(temporary, "wb") as file:
        torch.save({name: tensor.cpu() for name, tensor in vars(features).items()}, file)


def _joined(parts: list[dict[str, Tensor]]) -> Features:
    return Features(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@torch.no_grad()
def _compute(
    vae: Autoencoder,
    vision: ImageEncoder,
    seed: int,
    clips: range,
    moments: int,
    device: torch.device | str,
) -> Features:
    latents, tokens, scenes, off = [], [], [], []
    order = {scene: index for index, scene in enumerate(shapes.SCENES)}
    device = torch.device(device)
    painter, times = Painter(device), np.linspace(0, 1, moments)
    size = BATCH.get(device.type, 64)
    for first in tqdm(range(0, len(clips), size), desc="features", mininterval=10):
        indices = clips[first : first + size]
        drawn = [shapes.scene_and_track(index, seed=seed)[:2] for index in indices]
        scenes += [order[scene] for scene, _ in drawn]
        off += [np.abs(track.center - 0.5).max() for _, track in drawn]
        poses = torch.from_numpy(np.stack([track.at(times) for _, track in drawn]))
        video = shapes.to_video(painter.paint(torch.tensor(scenes[first:]).to(device), poses.to(device)))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            latents.append(vae.encode(video, chunk=len(drawn) * moments).transpose(1, 2).half())
            pictures = rearrange(video[:, :, ::PICTURED], "b c t h w -> (b t) c h w")
            tokens.append(rearrange(vision(pictures).half(), "(b t) k d -> b t k d", b=len(drawn)))
    return Features(torch.cat(latents), torch.cat(tokens), torch.tensor(scenes).to(device), torch.tensor(off))


class CaptionTokens:
    """Tokens of every caption of the grammar, of every still caption, and of the empty prompt.

    table: `[k n d]`; its rows are found by caption in `rows`, and by a scene's number in `of_scene` `[s]`,
    `of_still` `[s]` and `empty`.
    """

    @torch.no_grad()
    def __init__(self, encoder: TextEncoder, device: torch.device | str = "cpu"):
        captions = [
            EMPTY,
            *(s.caption for s in shapes.SCENES),
            *sorted({s.still_caption for s in shapes.SCENES}),
        ]
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.table = encoder.to(device)(captions).float()
        self.empty = self.rows[EMPTY]
        self.of_scene, self.of_still = (
            torch.tensor([self.rows[caption(scene)] for scene in shapes.SCENES], device=device)
            for caption in (lambda scene: scene.caption, lambda scene: scene.still_caption)
        )

    def __call__(self, captions: list[str]) -> Tensor:
        """Text tokens `[b n d]`."""
        return self.table[[self.rows[caption] for caption in captions]]
