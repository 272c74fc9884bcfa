"""Empty UniVid Latent: the size of a clip."""

from comfy_api.latest import io

from .host.decode import FACTOR, empty
from .host.model import profile_of

FPS = 8.0  # without a model: what UniVid was trained with


class UniVidEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidEmptyLatent",
            display_name="Empty UniVid Latent",
            category="UniVid",
            description="The size of the clip to make. What is 0 becomes what the model was trained with.",
            search_aliases=["empty latent", "empty video latent", "video size", "frames", "resolution"],
            inputs=[
                io.Int.Input(
                    "width", default=0, min=0, max=16384, step=FACTOR,
                    tooltip="Pixels, a multiple of 8; 0 = the model's training width.",
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=16384, step=FACTOR,
                    tooltip="Pixels, a multiple of 8; 0 = the model's training height.",
                ),
                io.Int.Input(
                    "frames", default=0, min=0, max=4096,
                    tooltip="Any number from 1 on; 0 = the model's training length, which it does best.",
                ),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="A UniVid model, whose training size and frame rate count; needed where a value "
                    "is 0.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="Zeros, one batch entry a frame; also for KSampler."
                ),
                io.Int.Output(display_name="width", tooltip="The clip's width in pixels."),
                io.Int.Output(display_name="height", tooltip="The clip's height in pixels."),
                io.Int.Output(display_name="frames", tooltip="The clip's number of frames."),
                io.Float.Output(
                    display_name="fps",
                    tooltip="Frames per second that the model was trained with; 8 without a model.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, width, height, frames, model=None) -> io.NodeOutput:
        profile = None if model is None else profile_of(model)
        size = {"width": width, "height": height, "frames": frames}
        for name, value in size.items():
            if value < 0 or (value == 0 and profile is None):
                raise ValueError(
                    f"{name} must be at least {1 if name == 'frames' else FACTOR}, or 0 for that of a "
                    f"connected model, got {value}{'' if value else ' without a model'}."
                )
            size[name] = value or getattr(profile, name)
        for name in ("width", "height"):
            if size[name] % FACTOR:
                near = max(1, round(size[name] / FACTOR)) * FACTOR
                raise ValueError(f"{name} must be a multiple of {FACTOR}, got {size[name]}; try {near}.")
        latents = empty(size["frames"], size["height"], size["width"])
        fps = FPS if profile is None else profile.fps
        return io.NodeOutput({"samples": latents}, size["width"], size["height"], size["frames"], fps)
