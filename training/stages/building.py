"""From examples, raw or prepared, to what the U-Net denoises: latents, and conditions under a mode each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.samples import Example, PreparedExample
from univid.conditioning import Conditioning, concat_frames, with_null_image
from univid.devices import beside
from univid.model import UniVid

from .base import Encoders
from .conditions import Mode
from .known import Known

Streams = tuple[bool, bool]  # whether text and image are shown by any sample of a step


class Builder:
    """Gives examples the form that a model takes. fps: of the data."""

    def __init__(self, model: UniVid, encoders: Encoders, fps: float):
        self.inputs, self.encoders = model.profile.inputs, encoders
        self.numbers = {name: self._number(name, fps) for name in model.config.unet.numbers}

    def _number(self, name: str, fps: float) -> float:
        """What the data say of a number; what nobody knows of them, such as a stride, as in sampling."""
        known = self.inputs.number(name)
        return fps if name == "fps" and (known is None or known.unit == "fps") else known.value

    def streams(self, modes: Sequence[Mode]) -> Streams:
        """Which streams samples of these modes need."""
        text, image = (any(mode[1][stream] for mode in modes) for stream in (0, 1))
        return text, image or self.inputs.null_image == "grey"

    def latents(self, examples: Sequence[Example | PreparedExample]) -> Tensor:
        """Latents `[b c t h w]`, float32 on the encoders' device."""
        if isinstance(examples[0], Example):
            return self.encoders.latents(torch.stack([example.pixels for example in examples]))
        return self.encoders.here(torch.stack([example.latents for example in examples])).float()

    def degraded(self, examples: Sequence[Example | PreparedExample]) -> Tensor:
        """Latents of the poor copies, likewise."""
        if isinstance(examples[0], Example):
            return self.encoders.latents(torch.stack([example.degraded for example in examples]))
        return self.encoders.here(torch.stack([example.degraded for example in examples])).float()

    def conditions(
        self,
        examples: Sequence[Example | PreparedExample],
        modes: Sequence[Mode],
        latents: Tensor,
        streams: Streams,
        known: Known | None = None,
    ) -> Conditioning:
        """What each example is denoised under; image tokens only where that stream runs.

        known: which frames of each are shown, of a model that makes the others.
        """
        numbers = {
            name: torch.full((len(examples),), float(value), device=latents.device)
            for name, value in self.numbers.items()
        }
        if known is not None and "noise" in numbers:
            numbers["noise"] = beside(1000 * known.levels, latents)
        cond = Conditioning(
            text=self._text(examples, modes),
            image=self._image(examples) if streams[1] else None,
            weights=torch.tensor([mode[1] for mode in modes]),
            concat=self._concat(latents, known),
            numbers=numbers,
        )
        null = self.encoders.null_image()
        return cond if null is None else with_null_image(cond, null)

    def _text(self, examples: Sequence[Example | PreparedExample], modes: Sequence[Mode]) -> Tensor:
        if isinstance(examples[0], Example):
            shown = [e.caption if mode[0] else "" for e, mode in zip(examples, modes, strict=True)]
            return self.encoders.text_tokens(shown)
        empty = self.encoders.text_tokens([""])[0]
        return torch.stack(
            [
                beside(e.text, empty, empty.dtype) if mode[0] else empty
                for e, mode in zip(examples, modes, strict=True)
            ]
        )

    def _image(self, examples: Sequence[Example | PreparedExample]) -> Tensor:
        if isinstance(examples[0], Example):
            return self.encoders.image_tokens(torch.stack([e.pixels[e.reference] for e in examples]))
        return self.encoders.here(torch.stack([example.image for example in examples])).float()

    def _concat(self, latents: Tensor, known: Known | None) -> Tensor | None:
        """Latents of the known frames, or of the picture, which is the first frame, and of the last one."""
        if known is not None:
            return known.channels(self.inputs.concat, latents)
        if self.inputs.concat == "none":
            return None
        return concat_frames(self.inputs.concat, latents[:, :, :1], latents[:, :, -1:], latents.shape[2])
