"""Reuse Steps: the deep blocks of the network run in every Nth step alone."""

from comfy_api.latest import io

from ..univid.steer import Reuse
from .host.changed import changed


class UniVidReuseSteps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidReuseSteps",
            display_name="Reuse Steps",
            category="UniVid",
            description="Runs the whole network in every Nth step alone, and its last blocks in each: "
            "faster, at some cost in quality. Fewer steps are the other way to be faster.",
            search_aliases=["DeepCache", "cache", "faster", "speed", "skip steps"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model from Load UniVid."),
                io.Int.Input(
                    "every", default=2, min=1, max=16,
                    tooltip="The whole network runs in every so many steps; 1 = in all of them, as it is.",
                ),
                io.Int.Input(
                    "blocks", default=3, min=1, max=64,
                    tooltip="How many of the last output blocks run in every step: more cost more and change "
                    "less. The full-size network has 12, the built-in one 8.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model that reuses its deep blocks.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, every, blocks) -> io.NodeOutput:
        return io.NodeOutput(changed(model, reuse=Reuse(every, blocks)))
