"""Known Frames and Biased Noise: what the cascade's nodes are made of, for other samplers."""

import re

from comfy_api.latest import io

from ..univid.biased import MODES, biased_mode
from .host import cascade
from .host.biased import with_consistent_noise
from .host.conditioning import extended
from .host.decode import FACTOR
from .host.model import profile_of
from .host.sampling import OWN

RANGE = re.compile(r"(-?\d+)(?:\s*-\s*(\d+))?")


def places(text: str, frames: int) -> list[int]:
    """The frames of "0, 4-6, -1" in a clip of so many; -1 is the last.

    Raises:
        ValueError: what is no number or range, or no frame of the clip.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        matched = RANGE.fullmatch(part)
        if matched is None:
            raise ValueError(f"expected frames like 0, 4-6, -1, got {part!r}; write numbers and commas.")
        first = int(matched[1])
        first += frames if first < 0 else 0
        last = first if matched[2] is None else int(matched[2])
        if not 0 <= first <= last < frames:
            raise ValueError(f"expected frames from 0 to {frames - 1}, or -1 for the last, got {part!r}.")
        found += range(first, last + 1)
    return found


class UniVidKnownFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidKnownFrames",
            display_name="Known Frames",
            category="UniVid",
            description="Tells a model of known frames which frames of a clip there are, and what they show: "
            "the sampler makes the others.",
            search_aliases=["keyframes", "first last frame", "inpaint frames", "condition on frames"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From Encode Dual Prompt."),
                io.Conditioning.Input("negative", tooltip="From Encode Dual Prompt."),
                io.Vae.Input("vae", tooltip="From Load UniVid."),
                io.Latent.Input(
                    "latent", tooltip="The clip's, from Empty UniVid Latent: its length and size."
                ),
                io.Image.Input(
                    "images",
                    tooltip="What the known frames show, one picture for each; cropped at the centre to the "
                    "size of the clip.",
                ),
                io.String.Input(
                    "frames", default="0",
                    tooltip="Which frames they are, counted from 0: numbers and ranges with commas, as in "
                    "0, 4-6, -1; -1 is the last.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With the known frames."),
                io.Conditioning.Output(display_name="negative", tooltip="With the known frames."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, positive, negative, vae, latent, images, frames) -> io.NodeOutput:
        samples = latent["samples"]
        shape = tuple(FACTOR * side for side in samples.shape[-2:])
        extras = cascade.known_frames(vae, images, places(frames, len(samples)), shape)
        return io.NodeOutput(extended(positive, extras), extended(negative, extras))


class UniVidBiasedNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidBiasedNoise",
            display_name="Biased Noise",
            category="UniVid",
            description="How a model that turns one video into another is sampled, for any sampler node: "
            "UniVid Upscale sets it by itself.",
            search_aliases=["UniVG", "super resolution noise", "BGN"],
            inputs=[
                io.Model.Input("model", tooltip="A model of biased noise, from Load UniVid."),
                io.Latent.Input(
                    "latent",
                    tooltip="Of the video that it starts from, enlarged; the sampler needs the same latent.",
                ),
                io.Combo.Input(
                    "mode", options=[OWN, *MODES], default=OWN,
                    tooltip="paper: as the paper does, with any sampler; the model stays as it is. "
                    "consistent: along the noise of its training, with samplers that add none.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model, sampled in this mode.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, latent, mode) -> io.NodeOutput:
        profile = profile_of(model)
        if profile.start.biased_noise is None:
            raise ValueError("expected a model of biased noise, got one that starts from plain noise.")
        mode = biased_mode(profile, None if mode == OWN else mode)
        return io.NodeOutput(
            with_consistent_noise(model, latent["samples"]) if mode == "consistent" else model
        )
