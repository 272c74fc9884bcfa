"""Set Modality Weights: how much the text and the picture count, in every frame and at every step."""

from comfy_api.latest import io, ui

from ..univid import curves
from ..univid.plot import weights_plot
from ..univid.steer import Masks
from .host.conditioning import has_image, with_weights
from .host.decode import as_image
from .host.steering import tell_what_steers

EXAMPLES = "a range 1..0, one with an easing 1..0 ease_in_out, or a list 1, 0.5, 0"


class UniVidModalityWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def over(name: str, modality: str, axis: str, rest: str):
            return io.String.Input(
                name, default="", optional=True, advanced=axis == "frames",
                tooltip=f"Multiplies {modality}_weight along the {axis}: {EXAMPLES}{rest}. "
                f"Easings: {', '.join(curves.EASINGS)}. Empty = 1.",
            )  # fmt: skip

        def listed(name: str, modality: str):
            types = [io.Float, io.Custom("FLOATS")]
            return io.MultiType.Input(
                name, types, optional=True,
                tooltip=f"Multiplies {modality}_weight: one number a frame, or one for all; in the place "
                f"of {modality}_over_frames.",
            )  # fmt: skip

        def masked(name: str, modality: str):
            return io.Mask.Input(
                name, optional=True,
                tooltip=f"Multiplies {modality}_weight in each place of the frame: 1 (white) = the full "
                "weight, 0 = none. Any size, over the whole frame; one for the clip, or one a frame.",
            )  # fmt: skip

        a_frame, a_step = " with one value a frame", ", spread from all noise to none left"
        return io.Schema(
            node_id="UniVidModalityWeights",
            display_name="Set Modality Weights",
            category="UniVid",
            description="How much the text (lambda_t) and the picture (lambda_v) steer: constants, curves "
            "over the frames and over the sampling steps, masks. The encoders do not run again.",
            search_aliases=[
                "lambda", "text weight", "image weight", "strength", "balance", "schedule", "region", "mask",
            ],
            is_input_list=True,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The positive of Encode Dual Prompt."),
                io.Float.Input(
                    "text_weight", default=1.0, min=0.0, max=10.0, step=0.05,
                    tooltip="lambda_t: 0 = the text has no say, 1 = as trained.",
                ),
                io.Float.Input(
                    "image_weight", default=1.0, min=0.0, max=10.0, step=0.05,
                    tooltip="lambda_v: 0 = the picture has no say, 1 = as trained. Without picture: 0.",
                ),
                io.Int.Input(
                    "frames", default=0, min=0, max=4096, optional=True, advanced=True,
                    tooltip="The clip's number of frames; only curves over the frames need it, and lists "
                    "bring it along (0).",
                ),
                over("text_over_frames", "text", "frames", a_frame),
                over("image_over_frames", "image", "frames", a_frame),
                over("text_over_steps", "text", "steps, by their noise levels", a_step),
                over("image_over_steps", "image", "steps, by their noise levels", a_step),
                listed("text_list", "text"),
                listed("image_list", "image"),
                masked("text_mask", "text"),
                masked("image_mask", "image"),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The same conditioning under these weights."
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip="A plot of the weights over the frames and the steps, and the masks.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, conditioning, frames=(0,), text_list=(), image_list=(), text_mask=(), image_mask=(), **values
    ) -> io.NodeOutput:
        """Everything comes as a list, because a list of floats may come; the rest has one item each."""
        values = {name: _one(name, items) for name, items in values.items()}
        text = _weight("text", values, text_list)
        image = _weight("image", values, image_list)
        masks = Masks(_mask("text_mask", text_mask), _mask("image_mask", image_mask))
        frames = _one("frames", frames) or masks.frames
        if frames is not None:
            masks.check(frames)
        weights = curves.modality_weights(text, image, frames)
        conditioning = _one("conditioning", conditioning)
        check_picture(conditioning, weights[..., 1].max().item(), "image_weight")
        if masks.image is not None and not has_image(conditioning):
            raise ValueError("image_mask is given, but there is no picture; disconnect it.")
        weighted = with_weights(conditioning, weights, masks)
        tell_what_steers(weighted, "raise the weight of what shall steer")
        preview = as_image(weights_plot(weights, masks))
        return io.NodeOutput(weighted, preview, ui=ui.PreviewImage(preview, cls=cls))


def check_picture(conditioning: list, image_weight: float, name: str) -> None:
    """Refuse an image weight for a conditioning that has no picture."""
    if image_weight > 0 and not has_image(conditioning):
        raise ValueError(
            f"{name} is {image_weight:g}, but there is no picture; give one to Encode Dual Prompt, or set "
            f"{name} to 0."
        )


def _weight(modality: str, values: dict, listed: list) -> curves.Weight:
    """One modality's number and curves out of the node's inputs."""
    numbers = [n for item in listed for n in (item if isinstance(item, (list, tuple)) else [item])]
    over_frames = values.get(f"{modality}_over_frames", "")
    if listed and over_frames.strip():
        raise ValueError(
            f"{modality}_list and {modality}_over_frames both say how the weight goes over the frames; "
            f"disconnect the list, or empty {modality}_over_frames ({over_frames!r})."
        )
    return curves.Weight(
        values[f"{modality}_weight"],
        curves.read(f"{modality}_list", curves.from_list, numbers)
        if listed
        else curves.read(f"{modality}_over_frames", curves.parse, over_frames),
        curves.read(f"{modality}_over_steps", curves.parse, values.get(f"{modality}_over_steps", "")),
    )


def _mask(name: str, items):
    """The mask `[1|t h w]` of an input, None where nothing is connected."""
    if not items:
        return None
    mask = _one(name, items)
    return (mask[None] if mask.dim() == 2 else mask).cpu()


def _one(name: str, items):
    if len(items) != 1:
        raise ValueError(
            f"{name} must be one value, got a list of {len(items)}; numbers for each frame belong into "
            "text_list and image_list."
        )
    return items[0]
