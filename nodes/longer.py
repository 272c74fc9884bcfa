"""FreeNoise Windows and FreeInit: clips longer than a model's own, and what their first noise is made of."""

from comfy_api.latest import io

from ..univid.noise import FRESH, LowBand
from ..univid.steer import FrameWindows
from ..univid.steer.windows import REFERENCES
from .host.model import profile_of
from .host.noise import with_low_band, with_windows


class UniVidFreeNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidFreeNoise",
            display_name="FreeNoise Windows",
            category="UniVid",
            description="For clips longer than the model's: attention over time sees a window of frames at a "
            "time, inside the layers, and all windows start from the same noises in another order.",
            search_aliases=["long video", "context windows", "sliding window", "FreeNoise"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model from Load UniVid."),
                io.Int.Input(
                    "window", default=0, min=0, max=4096,
                    tooltip="Frames of a window, from 2 on and at most those of the clip; 0 = the length of "
                    "the model's training.",
                ),
                io.Int.Input(
                    "stride", default=4, min=1, max=4096,
                    tooltip="Frames from one window to the next, at most a window. Fewer = more windows, "
                    "softer changes and more time.",
                ),
                io.Boolean.Input(
                    "free_noise", default=True,
                    tooltip="All windows start from the noises of the first one, in another order. Off: "
                    "every frame has its own noise.",
                ),
                io.Combo.Input(
                    "references", options=list(REFERENCES), default=REFERENCES[0], advanced=True,
                    tooltip="Reference frames of PSTAttn. window: each window its own, as trained. clip: the "
                    "same for all, spread over the whole clip.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model in windows, for PST Sampler or any other."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, window, stride, free_noise, references=REFERENCES[0]) -> io.NodeOutput:
        windows = FrameWindows(window or profile_of(model).frames, stride, references)
        return io.NodeOutput(with_windows(model, windows, free_noise))


class UniVidFreeInit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidFreeInit",
            display_name="FreeInit",
            category="UniVid",
            description="The next run starts from noise that has the low frequencies of a clip that was made "
            "before (FreeInit), or of a picture (FrameInit). FreeInit costs another run.",
            search_aliases=["FrameInit", "noise init", "flicker", "temporal consistency"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model, the one of the run before."),
                io.Latent.Input(
                    "latent",
                    tooltip="The clip of the run before, from its sampler; or one picture from VAE Encode, "
                    "at the size of the clip.",
                ),
                io.Int.Input(
                    "seed", default=2 * FRESH, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Of the fresh noise, another one than the sampler's. The sampler keeps the seed "
                    "of the run before.",
                ),
                io.Float.Input(
                    "cutoff", default=LowBand().cutoff, min=0.01, max=2.0, step=0.01,
                    tooltip="Where low frequencies end, as a share of the highest. Higher = more of the clip "
                    "or picture stays.",
                ),
                io.Float.Input(
                    "level", default=LowBand().level, min=0.01, max=1.0, step=0.01,
                    tooltip="How much noise clip or picture are under, as a share of the timesteps. Lower = "
                    "more of them stays; at 1 the built-in model sees nothing of them.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with this start, for PST Sampler or any other."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, latent, seed, cutoff, level) -> io.NodeOutput:
        return io.NodeOutput(
            with_low_band(model, latent["samples"], seed, LowBand(cutoff=cutoff, level=level))
        )
