"""UniVid Guider, and the guidance inputs that PST Sampler shares with it."""

from comfy_api.latest import io

from ..univid import guidance
from .host.guider import UniVidGuider
from .host.model import profile_of
from .host.steering import tell_what_steers

MODES = list(guidance.GUIDERS)
RAISE = "raise the scale of what shall steer"


def guidance_inputs() -> list:
    """mode, guidance_scale, text_guidance, image_guidance, rescale."""

    def scale(name: str, default: float, tooltip: str, **more):
        return io.Float.Input(
            name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip, **more
        )

    return [
        io.Combo.Input(
            "mode",
            options=MODES,
            default="joint",
            tooltip="How text and picture guide. joint: both at once, 2 branches a step. separate: text and "
            "picture each by its own scale, 3 branches. nested: picture first, then text on top, 3 branches.",
        ),
        scale(
            "guidance_scale", 1.0,
            "Used in joint mode: how strongly the conditions are followed. 1 = no guidance, and no negative "
            "prompt. The built-in model likes 1, full-size models 7.5.",
        ),
        scale(
            "text_guidance", 3.0,
            "Used in separate and nested mode: how strongly the prompt pulls, 0 = not at all.",
        ),
        scale(
            "image_guidance", 2.0,
            "Used in separate and nested mode: how strongly the picture pulls, 0 = not at all.",
        ),
        io.Float.Input(
            "rescale", default=0.0, min=0.0, max=1.0, step=0.05, advanced=True,
            tooltip="0 to 1: pulls the contrast of a strongly guided video back to that of the conditional "
            "answer (0.7 is usual where colours burn out).",
        ),
    ]  # fmt: skip


def build(
    mode: str, guidance_scale: float, text_guidance: float, image_guidance: float, rescale: float
) -> guidance.Joint | guidance.Separate | guidance.Nested:
    """The library's guider of the inputs above."""
    if mode == "joint":
        return guidance.Joint(guidance_scale, rescale)
    return guidance.GUIDERS[mode](text_guidance, image_guidance, rescale)


class UniVidGuiderNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidGuider",
            display_name="UniVid Guider",
            category="UniVid",
            description="Guidance by text and picture for SamplerCustomAdvanced: joint, separate or nested.",
            search_aliases=["cfg guider", "dual guidance", "image guidance", "text guidance"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A UniVid model from Load UniVid, with LoRAs and patches if any."
                ),
                io.Conditioning.Input("positive", tooltip="Prompt and picture, from Encode Dual Prompt."),
                io.Conditioning.Input("negative", tooltip="What to lead away from, from Encode Dual Prompt."),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, mode, guidance_scale, text_guidance, image_guidance, rescale=0.0
    ) -> io.NodeOutput:
        profile_of(model)
        scales = build(mode, guidance_scale, text_guidance, image_guidance, rescale)
        tell_what_steers(positive, RAISE, scales, negative)
        guider = UniVidGuider(model, scales)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)
