"""Add Picture: one more picture that the clip takes its content from."""

from comfy_api.latest import io

from ..univid import curves
from ..univid.steer import Masks
from .host.conditioning import with_picture
from .host.prompts import encode_image


class UniVidAddPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        curve = "a range 1..0, one with an easing 1..0 ease_in_out, or a list 1, 0.5, 0"
        return io.Schema(
            node_id="UniVidAddPicture",
            display_name="Add Picture",
            category="UniVid",
            description="One more picture for the clip, with a weight, frames, steps and a region of its "
            "own. Chain as many as you like.",
            search_aliases=["second image", "several images", "reference", "multi image", "image prompt"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", tooltip="The positive of Encode Dual Prompt, with or without a picture."
                ),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder of the pictures before."),
                io.Image.Input(
                    "image", tooltip="The picture, of any size; a batch is one picture a frame."
                ),
                io.Float.Input(
                    "weight", default=1.0, min=0.0, max=10.0, step=0.05,
                    tooltip="How much it counts: image_weight of Set Modality Weights is multiplied by it.",
                ),
                io.Int.Input(
                    "frames", default=0, min=0, max=4096, optional=True,
                    tooltip="The clip's number of frames, from Empty UniVid Latent; only a range over the "
                    "frames needs it. 0 = not given.",
                ),
                io.String.Input(
                    "over_frames", default="", optional=True,
                    tooltip=f"Multiplies weight along the frames: {curve} with one value a frame. Empty = 1.",
                ),
                io.String.Input(
                    "over_steps", default="", optional=True,
                    tooltip=f"Multiplies weight along the steps, by their noise levels: {curve}. Empty = 1.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where in the frame it counts: 1 (white) = fully, 0 = not at all. Any size, over "
                    "the whole frame; one for the clip, or one a frame.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The same conditioning with the picture, for another Add Picture, Set Modality "
                    "Weights or a sampler.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, conditioning, clip_vision, image, weight, frames=0, over_frames="", over_steps="", mask=None
    ) -> io.NodeOutput:
        region = None if mask is None else mask.reshape(-1, *mask.shape[-2:]).cpu()
        masks = Masks(image=region)
        frames = frames or masks.frames
        if frames is not None:
            masks.check(frames)
        share = curves.Weight(
            weight,
            curves.read("over_frames", curves.parse, over_frames),
            curves.read("over_steps", curves.parse, over_steps),
        )
        shares = curves.modality_weights(curves.Weight(), share, frames)[..., 1:]
        tokens = encode_image(clip_vision, image)
        return io.NodeOutput(with_picture(conditioning, tokens, shares, region))
