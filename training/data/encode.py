"""Raw samples to latents and tokens: decoded in threads, encoded a few at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.stages.base import Encoders

from . import buckets, decode
from .prepared import DEGRADED
from .samples import BadSample, Bucket, Raw


@dataclass(frozen=True)
class Window:
    """Which frames of a clip are taken: from its start, at `fps` a second, as many as it has up to `frames`.

    references: how many of them, spread evenly from the first on, are stored as pictures too.
    """

    frames: int
    min_frames: int
    fps: float
    references: int


@dataclass(frozen=True)
class Decoded:
    """A sample before the encoders: uint8 frames `[t h w 3]`, which of them are reference frames, and a poor
    copy of all where one is asked for.
    """

    raw: Raw
    pixels: Tensor
    references: tuple[int, ...]
    degraded: Tensor | None = None


def decode_sample(raw: Raw, bucket: Bucket, window: Window | None) -> Decoded:
    """The middle of a picture, or of frames of a clip, as training takes it when augmentation is off.

    Args:
        window: None for a picture.

    Raises:
        BadSample: not readable, or fewer than `min_frames` frames.
    """
    if window is None:
        return Decoded(raw, buckets.fit(decode.decode_image(raw.media, cover=bucket), bucket, 0.5, 0.5), (0,))
    part = {"fps": window.fps, "start": raw.start, "end": raw.end}
    frames = min(window.frames, decode.available_frames(raw.media, **part))
    if frames < window.min_frames:
        raise BadSample(f"{frames} frames at {window.fps:g} fps, {window.min_frames} needed")
    pixels = decode.decode_clip(raw.media, frames=frames, cover=bucket, **part)
    count = min(window.references, frames)
    references = tuple(i * frames // count for i in range(count))
    return Decoded(raw, buckets.fit(pixels, bucket, 0.5, 0.5), references)


class Encoder:
    """Decoded samples to the tensors that are stored, of type `dtype`."""

    def __init__(self, encoders: Encoders, dtype: torch.dtype):
        self.encoders, self.dtype = encoders, dtype

    def __call__(self, samples: list[Decoded]) -> list[dict[str, Tensor]]:
        """The tensors of each sample; all samples have one height and width, and a poor copy or none has."""
        pictures = torch.cat([sample.pixels[list(sample.references)] for sample in samples])
        columns = (
            self.latents([sample.pixels for sample in samples]),
            self.text_tokens([sample.raw.caption for sample in samples]),
            self.encoders.image_tokens(pictures)
            .to("cpu", self.dtype)
            .split([len(sample.references) for sample in samples]),
        )
        stored = [
            {
                "latents": latent,
                "text": text.contiguous(),
                "image": image.contiguous(),
                "reference_frames": torch.tensor(sample.references),
            }
            for sample, latent, text, image in zip(samples, *columns, strict=True)
        ]
        if samples[0].degraded is not None:
            poor = self.latents([sample.degraded for sample in samples])
            stored = [tensors | {DEGRADED: latent} for tensors, latent in zip(stored, poor, strict=True)]
        return stored

    def latents(self, clips: list[Tensor]) -> list[Tensor]:
        """Latents `[c t h w]` of clips uint8 `[t h w 3]`, as they are stored."""
        latents = self.encoders.latents(torch.cat(clips)[None])[0].to("cpu", self.dtype)
        return [part.contiguous() for part in latents.split([len(clip) for clip in clips], dim=1)]

    def text_tokens(self, prompts: list[str]) -> Tensor:
        """Tokens of prompts `[b n d]`, as they are stored."""
        return self.encoders.text_tokens(prompts).to("cpu", self.dtype)
