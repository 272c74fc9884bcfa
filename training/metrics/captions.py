"""Does the network know what it is told? Its own loss picks each video's caption from several.

A network that was trained to denoise under captions is a classifier of them (Li et al. 2303.16203, Diffusion
Classifier): under the true caption it should take noise off a video best. The same noise at the same
timesteps is on the video under all captions, so that they differ by their words alone.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.rng import generator
from univid.asked import Source
from univid.coding import encode
from univid.conditioning import Conditioning, with_null_image
from univid.config import KNOWN
from univid.diffusion import training_loss
from univid.joined import joined_latents
from univid.messages import shown
from univid.model import UniVid
from univid.pipeline import encode_conditions, grey_tokens
from univid.video import fit, from_uint8

if TYPE_CHECKING:
    from .videos import Video


@dataclass(frozen=True)
class Choice:
    """How captions are chosen among.

    captions: how many for each video, the true one among them. draws: of noise and timestep, over which the
    loss of each caption is averaged. batch: captions at a time.

    Raises:
        ValueError: fewer than two captions, or no draws.
    """

    captions: int = 10
    draws: int = 16
    seed: int = 0
    batch: int = 4

    def __post_init__(self):
        if self.captions < 2:
            raise ValueError(f"expected at least 2 captions to choose among, got {self.captions}.")
        if min(self.draws, self.batch) < 1:
            raise ValueError(f"expected 1 draw or more and a batch of 1 or more, got {self}.")


def check_model(model: UniVid) -> None:
    """Refuse, by a ValueError, a checkpoint that cannot denoise a video under words."""
    for part, name in ((model.unet, "network"), (model.vae, "VAE"), (model.text_encoder, "text tower")):
        if part is None:
            raise ValueError(
                f"expected a checkpoint with a {name}, got one without; take one that holds all parts."
            )
    if model.profile.start.from_video:
        raise ValueError(
            "expected a checkpoint that starts from noise alone, got one that refines another's video; take "
            "the one that makes the video."
        )


def captions_for(videos: Sequence["Video"], choice: Choice) -> list[list[str]]:
    """For each video the captions to choose among, the true one first, then others of the folder.

    Which others depends on the seed, the video's name and the set of all captions.

    Raises:
        ValueError: videos without a caption, or fewer than two different captions in all.
    """
    missing = [video.name for video in videos if not (video.prompt or "").strip()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(videos)} videos have no caption, the first: {shown(missing[0])}; give "
            "each its NAME.txt, or a manifest.jsonl with their prompts."
        )
    known = sorted({video.prompt for video in videos})
    if len(known) < 2:
        raise ValueError(
            f"expected videos of at least 2 different captions, got only {shown(repr(known[0]))}; add videos "
            "of others."
        )
    found = []
    for video in videos:
        others = [caption for caption in known if caption != video.prompt]
        order = torch.randperm(len(others), generator=generator(choice.seed, f"captions of {video.name}", 0))
        found.append([video.prompt, *(others[i] for i in order[: choice.captions - 1].tolist())])
    return found


def caption_losses(
    model: UniVid, frames: np.ndarray, captions: Sequence[str], choice: Choice, name: str, fps: float = np.nan
) -> np.ndarray:
    """The denoising loss of a video under each caption, at each draw: float64 `[draws captions]`.

    The loss is that of the training, without a weighting, under the text alone; timesteps are spread evenly
    over all that sampling goes through. frames: uint8 `[t h w 3]`, fps of them a second, from which a clip of
    the model's size and rate is taken. name: by which noise and timesteps are drawn.
    """
    clip = clip_of(model, frames, fps)
    latents = encode(model, clip)  # [1 c t h w]
    parts = [captions[start : start + choice.batch] for start in range(0, len(captions), choice.batch)]
    conditions = [_conditions(model, part, clip, latents) for part in parts]
    schedule = model.denoiser().schedule
    unet, losses = model.unet, np.empty((choice.draws, len(captions)))

    def network(x: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return unet(x.to(unet.dtype), timesteps, cond.to(dtype=unet.dtype))

    random = generator(choice.seed, f"noise of {name}", 0)
    offset = torch.rand((), generator=random)
    for draw in range(choice.draws):
        noise = torch.randn(latents.shape, generator=random).to(latents.device)
        timestep = ((draw + offset) / choice.draws * (schedule.last + 1)).long().clamp(max=schedule.last)
        losses[draw] = torch.cat(
            [
                training_loss(
                    network,
                    schedule,
                    model.config.schedule.prediction,
                    latents.expand(cond.clips, -1, -1, -1, -1),
                    noise.expand(cond.clips, -1, -1, -1, -1),
                    timestep.expand(cond.clips).to(latents.device),
                    cond,
                )
                for cond in conditions
            ]
        ).cpu()
    return losses


def clip_of(model: UniVid, frames: np.ndarray, fps: float = np.nan) -> Tensor:
    """A clip `[1 3 t h w]` as the model makes them, of the beginning of a video uint8 `[t h w 3]`.

    At the model's rate where the video's is known and higher, else frame by frame: none is repeated, so a
    video that is too short gives a shorter clip. Cut at the centre to the model's proportions.
    """
    profile = model.profile
    step = max(1.0, fps / profile.fps) if fps > 0 else 1.0
    chosen = np.round(np.arange(profile.frames) * step).astype(int)
    return fit(from_uint8(frames[chosen[chosen < len(frames)]]), profile.height, profile.width)


def pick(model: UniVid, videos: Sequence["Video"], choice: Choice, progress: bool = True) -> dict:
    """Whether each video's own caption has the lowest loss; JSON values.

    accuracy: the share of videos of which it has, its 95 % interval after Wilson, and chance: that of
    guessing. rows: of each video its captions, the true one first, and their losses.

    Raises:
        ValueError: as `check_model` and `captions_for`; a video that cannot be read.
    """
    check_model(model)
    rows = []
    pairs = list(zip(videos, captions_for(videos, choice), strict=True))
    for video, captions in tqdm(pairs, unit="video", mininterval=1, disable=not progress):
        frames, fps = video.read()
        with torch.inference_mode():
            losses = caption_losses(model, frames, captions, choice, video.name, fps).mean(0)
        right = bool(losses[0] < losses[1:].min())
        rows.append({"video": video.name, "right": right, "captions": captions, "losses": losses.tolist()})
    return accuracy([row["right"] for row in rows], len(pairs[0][1])) | {"draws": choice.draws, "rows": rows}


def accuracy(right: Sequence[bool], captions: int) -> dict:
    """The share of right choices among so many captions, with its interval and chance."""
    from scipy.stats import binomtest

    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    share = {"value": sum(right) / len(right), "low": float(interval.low), "high": float(interval.high)}
    return {"accuracy": share, "chance": 1 / captions, "videos": len(right), "captions": captions}


def _conditions(model: UniVid, captions: Sequence[str], clip: Tensor, latents: Tensor) -> Conditioning:
    """The captions alone; of what else a model is given, the clip's own first and last frame and rate."""
    frames, profile = clip.shape[2], model.profile
    cond, _ = encode_conditions(model, list(captions), [], "", 1.0, 0.0, range(frames))
    told = {name: profile.inputs.number(name) for name in model.config.unet.numbers}
    numbers = {
        name: torch.full((len(captions),), float(profile.fps if number is None else number.value))
        for name, number in told.items()
    }
    ends = profile.inputs.concat not in ("none", *KNOWN)  # of known frames a model can do without
    picture, last = (clip[:, :, place] if ends else None for place in (0, -1))
    joined = joined_latents(model, picture, Source(last_image=last), 0.0, tuple(clip.shape[2:]), latents)
    cond = dataclasses.replace(
        cond,
        numbers=numbers,
        concat=None if joined is None else joined.expand(len(captions), *joined.shape[1:]),
    ).to(device=latents.device)
    return with_null_image(cond, grey_tokens(model)) if profile.inputs.null_image == "grey" else cond
