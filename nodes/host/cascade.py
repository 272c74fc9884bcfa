"""Stages of the cascade in the host: clips made out of clips, window by window, as in univid/cascade.py."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import comfy.model_management as management
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from einops import rearrange
from torch import Tensor

from ...univid import windows
from ...univid.asked import check_size, own_tile
from ...univid.biased import biased_mode
from ...univid.pipeline import profile_guider
from ...univid.roles import check_role
from ...univid.steer import Masks
from ...univid.video import fit
from ...univid.windows import Window
from . import conditioning as keys
from .biased import with_consistent_noise
from .decode import FACTOR, decode, empty
from .model import profile_of, with_tile
from .prompts import rgb
from .sampling import OWN, sample

KEY = "univid_kept"
PER_FRAME = (keys.IMAGE, keys.WEIGHTS, keys.SHARES)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What all windows of a stage have in common.

    steps: 0 = the checkpoint's own. longest: frames of a window at most; 0 = as many as the model was trained
    on.
    """

    model: object
    vae: object
    positive: list
    negative: list
    seed: int = 0
    steps: int = 0
    sampler_name: str = OWN
    scheduler: str = OWN
    longest: int = 0

    def window(self) -> int:
        """Frames of a window at most.

        Raises:
            ValueError: a single one.
        """
        longest = self.longest or profile_of(self.model).frames
        if longest < 2:
            raise ValueError(f"a window must have at least 2 frames, got {longest}; set more.")
        return longest

    def made(self, model, window: Window, latents: Tensor, total: int, extras: dict | None = None) -> Tensor:
        """The new frames `[t h w 3]` of a window of `total` frames, sampled from latents `[t c h w]`."""
        profile = profile_of(model)
        pair = [
            keys.extended(_within(conditioning, window, total), extras or {})
            for conditioning in (self.positive, self.negative)
        ]
        out, _ = sample(
            model, *pair, {"samples": latents, "batch_index": list(range(window.start, window.end))},
            seed=self.seed, steps=self.steps or profile.steps, sampler_name=self.sampler_name,
            scheduler=self.scheduler, guider=profile_guider(profile),
        )  # fmt: skip
        return decode(self.vae, out["samples"][window.new - window.start :])

    def around(self, window: Window, known: dict[int, Tensor], shape: tuple[int, int], total: int) -> Tensor:
        """The new frames of a window around its known ones, whose latents `[1 c h w]` are found by frame."""
        here = {frame - window.start: known[frame] for frame in window.known}
        return self.made(self.model, window, empty(window.frames, *shape), total, {keys.KNOWN: here})


def interpolate(run: Run, images: Tensor, factor: int) -> Tensor:
    """`factor - 1` new frames between each two of `[t h w c]`; those that are there stay, if without noise.

    Raises:
        ValueError: another model, a single frame, or a factor below 2.
    """
    check_role(profile_of(run.model), "known", "Interpolate")
    if factor < 2:
        raise ValueError(f"factor must be a whole number of at least 2, got {factor}.")
    if len(images) < 2:
        raise ValueError(f"expected at least 2 frames to interpolate between, got {len(images)}.")
    images = rgb(images)
    shape = _shape(images)
    total = windows.interpolated(len(images), factor)
    result = images.new_empty(total, *images.shape[1:])
    found, latents = list(windows.interpolation(len(images), factor, run.window())), {}
    for window in _watched(found):
        latents = {
            frame: latents[frame] if frame in latents else _encoded(run.vae, images[frame // factor][None])
            for frame in window.known
        }
        result[window.new : window.end] = run.around(window, latents, shape, total)
    if not _noisy(run):
        result[::factor] = images
    return result


def extend(run: Run, images: Tensor, more: int, known: int) -> Tensor:
    """`[t h w c]` and `more` frames after them, each window from the last `known` ones before it.

    more: 0 = as many as one window makes. known: 0 = a third of a window.

    Raises:
        ValueError: another model, or numbers that leave nothing to make.
    """
    check_role(profile_of(run.model), "known", "Extend")
    longest = run.window()
    known, more = windows.carried(longest, known or None, more or None)
    images = rgb(images)
    shape, total = _shape(images), len(images) + more
    result = torch.cat([images, images.new_empty(more, *images.shape[1:])])
    for window in _watched(list(windows.extension(len(images), more, known, longest))):
        latents = {frame: _encoded(run.vae, result[frame][None]) for frame in window.known}
        result[window.new : window.end] = run.around(window, latents, shape, total)
    return result


def upscale(run: Run, images: Tensor, height: int, width: int, tile: int, mode: str | None) -> Tensor:
    """`[t h w c]` enlarged and refined.

    height, width: of the result, 0 = the model's. tile: pixels a side, 0 = the model's size where frames are
    larger. mode: of biased noise, None = the model's.

    Raises:
        ValueError: another model, or a size below that of the frames.
    """
    profile = profile_of(run.model)
    check_role(profile, "upscale", "Upscale")
    height, width = height or profile.height, width or profile.width
    check_size(height, width, FACTOR)
    if height < images.shape[1] or width < images.shape[2]:
        raise ValueError(
            f"expected a size of at least the frames' {images.shape[2]} x {images.shape[1]}, got {width} x "
            f"{height}; ask for more."
        )
    tile = tile or own_tile(profile, height, width, FACTOR)
    model = with_tile(run.model, tile) if tile else run.model
    mode, longest = biased_mode(profile, mode), run.window()
    result = images.new_empty(len(images), height, width, 3)
    for window in _watched(list(windows.sliding(len(images), longest))):
        low = _enlarged(rgb(images[window.start : window.end]), height, width)
        latents = _encoded(run.vae, low, tile)
        sampled = with_consistent_noise(model, latents) if mode == "consistent" else model
        if window.known:
            sampled = with_kept(sampled, _encoded(run.vae, result[window.start : window.new], tile))
        result[window.new : window.end] = run.made(sampled, window, latents, len(images))
    return result


def with_kept(model, latents: Tensor):
    """A clone of a MODEL whose first frames are these in every step, so that the others go on from them.

    latents: `[k c h w]`, as VAE Encode gives them.
    """

    def predict(executor: WrapperExecutor, x: Tensor, sigma: Tensor, *args, **kwargs) -> Tensor:
        denoised = executor(x, sigma, *args, **kwargs)
        kept = executor.class_obj.inner_model.process_latent_in(latents).to(denoised)
        return torch.cat([kept, denoised[len(kept) :]])

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict)
    return clone


def known_frames(vae, images: Tensor, places: Sequence[int], shape: tuple[int, int]) -> dict:
    """What a conditioning carries of known frames: pictures `[n h w c]` at these places of a clip.

    shape: height and width of the clip in pixels, to which pictures are cropped at their centre.

    Raises:
        ValueError: another number of places, or one twice.
    """
    if len(places) != len(images) or len(set(places)) != len(places):
        raise ValueError(
            f"expected one place for each of {len(images)} known frames, each once, got "
            f"{', '.join(map(str, places)) or 'none'}."
        )
    pictures = _enlarged(rgb(images), *shape)
    found = {place: _encoded(vae, picture[None]) for place, picture in zip(places, pictures, strict=True)}
    return {keys.KNOWN: dict(sorted(found.items()))}


def _noisy(run: Run) -> bool:
    """Whether the model sees known frames under noise: then they are made as the others are."""
    level = profile_of(run.model).inputs.number("noise")
    return level is not None and level.value > 0


def _shape(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[1:3]
    check_size(height, width, FACTOR)
    return height, width


def _encoded(vae, images: Tensor, tile: int | None = None) -> Tensor:
    """Latents `[t c h w]`, not scaled."""
    if tile and tile < max(images.shape[1:3]):
        return vae.encode_tiled(images, tile_x=tile, tile_y=tile, overlap=tile // 4)
    return vae.encode(images)


def _enlarged(images: Tensor, height: int, width: int) -> Tensor:
    """Frames `[t h w 3]` cropped at their centre and resized, one by one."""
    result = images.new_empty(len(images), height, width, 3)
    for place, frame in enumerate(images):
        clip = fit(rearrange(frame, "h w c -> 1 c 1 h w") * 2 - 1, height, width)
        result[place] = (rearrange(clip, "1 c 1 h w -> h w c") + 1) / 2
    return result


def _within(conditioning: list, window: Window, total: int) -> list:
    """A conditioning of a clip of `total` frames, of a window's frames: what is per frame is cut."""

    def cut(tensor):
        per_frame = isinstance(tensor, Tensor) and tensor.shape[0] == total > 1
        return tensor[window.start : window.end] if per_frame else tensor

    def cut_all(extras: dict) -> dict:
        parts = {key: cut(extras[key]) for key in PER_FRAME if key in extras}
        if keys.MASKS in extras:
            masks = extras[keys.MASKS]
            parts[keys.MASKS] = Masks(cut(masks.text), cut(masks.image))
        if keys.REGIONS in extras:
            parts[keys.REGIONS] = tuple(map(cut, extras[keys.REGIONS]))
        return extras | parts

    return [[cut(tokens), cut_all(extras)] for tokens, extras in conditioning]


def _watched(found: Sequence[Window]) -> Iterator[Window]:
    """The windows, with an interrupt and a line of the log before each."""
    for number, window in enumerate(found, start=1):
        management.throw_exception_if_processing_interrupted()
        logger.info(
            "UniVid: window %d of %d, frames %d to %d", number, len(found), window.new, window.end - 1
        )
        yield window
