"""Interpolate, Extend and Upscale: clips made out of clips."""

from comfy_api.latest import io

from ..univid.biased import MODES
from .host import cascade, sampling
from .host.decode import FACTOR

OWN = sampling.OWN


def clip_inputs(images: str, model: str) -> list:
    """model, vae, positive, negative, images; images, model: tooltips."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Vae.Input("vae", tooltip="From Load UniVid, or any Stable Diffusion VAE that suits the model."),
        io.Conditioning.Input(
            "positive", tooltip="From Encode Dual Prompt: what the clip shows. Its prompt may be empty."
        ),
        io.Conditioning.Input("negative", tooltip="What to lead away from, from Encode Dual Prompt."),
        io.Image.Input("images", tooltip=images),
    ]


def window_inputs() -> list:
    """seed, steps, sampler_name, scheduler, window."""
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
            tooltip="Seed of the noise. Each frame has noise of its own, whichever window it is made in.",
        ),
        io.Int.Input(
            "steps", default=0, min=0, max=10000,
            tooltip="Sampling steps of each window; 0 = the checkpoint's own.",
        ),
        io.Combo.Input(
            "sampler_name", options=sampling.SAMPLERS, default=OWN, advanced=True,
            tooltip="How a step is taken.",
        ),
        io.Combo.Input(
            "scheduler", options=sampling.SCHEDULERS, default=OWN, advanced=True,
            tooltip="How the noise levels of the steps are spaced.",
        ),
        io.Int.Input(
            "window", default=0, min=0, max=4096, advanced=True,
            tooltip="Frames that are made at once at most; 0 = as many as the model was trained on. Fewer "
            "need less memory.",
        ),
    ]  # fmt: skip


class UniVidInterpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidInterpolate",
            display_name="UniVid Interpolate",
            category="UniVid",
            description="Makes new frames between those of a clip, which stay as they are.",
            search_aliases=["frame interpolation", "more frames", "slow motion", "in-between", "fps"],
            inputs=[
                *clip_inputs(
                    "The clip's frames, at least 2, of a size that is a multiple of 8.",
                    "A model for known frames, from Load UniVid: built-in-known, for instance.",
                ),
                io.Int.Input(
                    "factor", default=4, min=2, max=64,
                    tooltip="Frames for one: n frames become factor x (n - 1) + 1.",
                ),
                io.Float.Input(
                    "fps", default=8.0, min=0.01, max=1000.0, step=0.1,
                    tooltip="Frames per second of the clip, from Decode Video.",
                ),
                *window_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames, the old ones and the new."),
                io.Float.Output(
                    display_name="fps", tooltip="Frames per second at which the clip lasts as long as before."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, positive, negative, images, factor, fps, seed, steps=0, sampler_name=OWN,
        scheduler=OWN, window=0,
    ) -> io.NodeOutput:  # fmt: skip
        run = cascade.Run(
            model, vae, positive, negative, seed, steps, sampler_name, scheduler, longest=window
        )
        return io.NodeOutput(cascade.interpolate(run, images, factor), factor * fps)


class UniVidExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidExtend",
            display_name="UniVid Extend",
            category="UniVid",
            description="Makes a clip longer: the last frames are known, more come after them.",
            search_aliases=["longer video", "continue video", "video prediction", "next frames"],
            inputs=[
                *clip_inputs(
                    "The clip's frames, of a size that is a multiple of 8.",
                    "A model for known frames, from Load UniVid: built-in-known, for instance.",
                ),
                io.Int.Input(
                    "frames", default=0, min=0, max=4096,
                    tooltip="How many are added; 0 = as many as one window adds.",
                ),
                io.Int.Input(
                    "known", default=0, min=0, max=4096,
                    tooltip="How many of the last frames a window is shown: more carry the motion on, "
                    "fewer leave more to make. 0 = a third of a window.",
                ),
                *window_inputs(),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The clip, and new frames after it.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, positive, negative, images, frames, known, seed, steps=0, sampler_name=OWN,
        scheduler=OWN, window=0,
    ) -> io.NodeOutput:  # fmt: skip
        run = cascade.Run(
            model, vae, positive, negative, seed, steps, sampler_name, scheduler, longest=window
        )
        return io.NodeOutput(cascade.extend(run, images, frames, known))


class UniVidUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidUpscale",
            display_name="UniVid Upscale",
            category="UniVid",
            description="Makes a clip larger and adds the detail that it lacks, in windows of frames and, "
            "where frames are large, in tiles.",
            search_aliases=["super resolution", "video upscale", "enhance", "720p"],
            inputs=[
                *clip_inputs(
                    "The clip's frames, of any size up to the new one.",
                    "A model that refines enlarged videos, from Load UniVid: built-in-upscale, for instance.",
                ),
                *[
                    io.Int.Input(
                        name, default=0, min=0, max=16384, step=FACTOR,
                        tooltip=f"Pixels, a multiple of 8; 0 = the model's training {name}.",
                    )
                    for name in ("width", "height")
                ],
                io.Int.Input(
                    "tile", default=0, min=0, max=16384, step=FACTOR,
                    tooltip="Pixels a side of the tiles that larger frames are made in, which overlap by a "
                    "quarter; smaller ones need less memory. 0 = the model's training size.",
                ),
                io.Combo.Input(
                    "mode", options=[OWN, *MODES], default=OWN, advanced=True,
                    tooltip="How a model of biased noise is sampled. paper, its own: as the paper does, with "
                    "any sampler. consistent: along the noise of its training, with samplers that add none.",
                ),
                *window_inputs(),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The larger frames, one for each.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, vae, positive, negative, images, width, height, tile, seed, mode=OWN, steps=0,
        sampler_name=OWN, scheduler=OWN, window=0,
    ) -> io.NodeOutput:  # fmt: skip
        run = cascade.Run(
            model, vae, positive, negative, seed, steps, sampler_name, scheduler, longest=window
        )
        mode = None if mode == OWN else mode
        return io.NodeOutput(cascade.upscale(run, images, height, width, tile, mode))
