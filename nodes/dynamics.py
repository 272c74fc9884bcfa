"""Livelier Motion: attention over time that leans towards near frames, and guidance over time."""

from comfy_api.latest import io

from ..univid.steer import Dynamics
from .host.changed import changed


class UniVidLivelierMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidLivelierMotion",
            display_name="Livelier Motion",
            category="UniVid",
            description="Changes how much a clip moves, without training: attention over time leans towards "
            "near frames in the first steps, and guidance leads away from what each frame would be alone.",
            search_aliases=["VSTAR", "dynamics", "motion strength", "temporal guidance", "motion scale"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model from Load UniVid."),
                io.Float.Input(
                    "sigma", default=1.0, min=0.1, max=64.0, step=0.1, round=0.01,
                    tooltip="How near frames must be to be leaned towards, in frames: 0.5 changes much, 1 "
                    "some, 2 and more little.",
                ),
                io.Float.Input(
                    "share", default=0.3, min=0.0, max=1.0, step=0.05, round=0.01,
                    tooltip="The share of the sampling in which it does, from its begin: 0 = not at all, "
                    "0.3 = while the motion is decided, 1 = in every step.",
                ),
                io.Float.Input(
                    "temporal_guidance", default=1.0, min=0.0, max=20.0, step=0.1, round=0.01,
                    tooltip="How far guidance leads away from frames that know nothing of each other; 0 = "
                    "not at all; try 0.5 to 2. One more call of the model a step.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model that moves otherwise.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, sigma, share, temporal_guidance) -> io.NodeOutput:
        dynamics = Dynamics(sigma, share) if share else None
        return io.NodeOutput(changed(model, dynamics=dynamics, temporal_guidance=temporal_guidance))
