"""PST Options: how many reference frames each level of the pyramid attends to, if any."""

from comfy_api.latest import io

from .host.model import with_reference_frames

LEVELS = {1: "finest (whole latents)", 2: "half", 4: "quarter", 8: "coarsest (an eighth)"}


class UniVidPSTOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidPSTOptions",
            display_name="PST Options",
            category="UniVid",
            description="Sets the pyramid of spatial-temporal attention: how many evenly spread reference "
            "frames every frame looks at, level by level. "
            "More hold a clip together better, fewer or none run faster.",
            search_aliases=["reference frames", "pyramid", "temporal consistency", "PSTAttn"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model from Load UniVid."),
                *[
                    io.Int.Input(
                        f"level_{factor}", default=0, min=-1, max=512,
                        tooltip=f"Reference frames at the {words} resolution. 0 = as the model was trained "
                        f"(of 24 frames {24 // segment}); more than the clip has frames means all of them; "
                        "-1 = none: this attention is off here, for speed.",
                    )
                    for (factor, words), segment in zip(LEVELS.items(), (8, 4, 2, 1), strict=True)
                ],
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with this pyramid.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, level_1, level_2, level_4, level_8) -> io.NodeOutput:
        given = dict(zip(LEVELS, (level_1, level_2, level_4, level_8), strict=True))
        return io.NodeOutput(with_reference_frames(model, {f: max(0, n) for f, n in given.items() if n}))
