"""PST Sampler: the whole sampling of a clip in one node."""

from comfy_api.latest import io

from .guide import RAISE, build, guidance_inputs
from .host import sampling
from .host.decode import as_image
from .host.preview import NO_PICTURE, picture_of
from .host.pulls import plot
from .host.steering import tell_what_steers


def sampling_inputs() -> list:
    """seed, steps, sampler_name, scheduler."""
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
            tooltip="Of the noise; the same seed makes the same clip.",
        ),
        io.Int.Input(
            "steps", default=12, min=1, max=10000,
            tooltip="Sampling steps of a clip: 12 suit the built-in model, 25 to 50 full-size ones.",
        ),
        io.Combo.Input(
            "sampler_name", options=sampling.SAMPLERS, default=sampling.OWN,
            tooltip="How a step is taken. Each checkpoint says what suits it, the built-in one lcm.",
        ),
        io.Combo.Input(
            "scheduler", options=sampling.SCHEDULERS, default=sampling.OWN,
            tooltip="How the noise levels of the steps are spaced. Each checkpoint says what suits it.",
        ),
    ]  # fmt: skip


class UniVidPSTSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidPSTSampler",
            display_name="PST Sampler",
            category="UniVid",
            description="Makes the clip: noise, guidance by text and picture, sampling with progress and "
            "preview. In separate and nested mode it also shows how far text and picture pull in each step.",
            search_aliases=["ksampler", "univid sampler", "video sampler", "dual guidance"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model, with any LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="Prompt and picture, from Encode Dual Prompt."),
                io.Conditioning.Input("negative", tooltip="What to lead away from, from Encode Dual Prompt."),
                io.Latent.Input(
                    "latent",
                    tooltip="Empty UniVid Latent, or VAE Encode of a video (then lower denoise).",
                ),
                *sampling_inputs(),
                *guidance_inputs(),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="1 = a new clip; with less, that much more of the latent stays, and curves "
                    "over the steps start where the noise does.",
                ),
                io.Float.Input(
                    "eta", default=-1.0, min=-1.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="Used by the sampler ddim: how much of a step's noise is fresh, 0 to 1. Below 0 "
                    "= the checkpoint's own, which is 0 but for VideoCrafter and DynamiCrafter.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clip's latents, for Decode Video."),
                io.Image.Output(
                    display_name="pulls",
                    tooltip="Plot of how far text and picture pull in each step, and of the cosine between.",
                ),
                io.Float.Output(
                    display_name="pull values", is_output_list=True,
                    tooltip="The plot's numbers a step: text pull, image pull, cosine; empty in joint mode.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps, sampler_name, scheduler, mode, guidance_scale,
        text_guidance, image_guidance, denoise, rescale=0.0, eta=-1.0,
    ) -> io.NodeOutput:  # fmt: skip
        guider = build(mode, guidance_scale, text_guidance, image_guidance, rescale)
        tell_what_steers(positive, RAISE, guider, negative)
        out, pulls = sampling.sample(
            model, positive, negative, latent,
            seed=seed, steps=steps, sampler_name=sampler_name, scheduler=scheduler, denoise=denoise, eta=eta,
            guider=guider,
        )  # fmt: skip
        picture, values = plot(pulls)
        shown = picture_of(cls, picture) if values else NO_PICTURE
        return io.NodeOutput(out, as_image(picture), values, ui=shown)
