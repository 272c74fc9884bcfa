"""Modality Sweep: how text and picture weights steer, as one labelled picture."""

from comfy_api.latest import io

from ..univid import curves
from ..univid.guidance import Joint
from ..univid.sheet import sweep_sheet
from .guide import RAISE
from .host.conditioning import with_weights
from .host.decode import as_clip, as_image, decode, spread
from .host.preview import picture_of
from .host.progress import span
from .host.sampling import sample
from .host.steering import tell_what_steers
from .sample import sampling_inputs
from .weights import check_picture

FRAMES_SHOWN = 4
SAMPLING = 0.9  # the share of a cell's time, for the progress bar; the rest is decoding


class UniVidModalitySweep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def weights(name: str, words: str):
            return io.String.Input(
                name, default="0, 0.5, 1", tooltip=f"{words}, separated by commas. Every cell is one run."
            )

        return io.Schema(
            node_id="UniVidModalitySweep",
            display_name="Modality Sweep",
            category="UniVid",
            description="Samples the same clip under each pair of text weight and picture weight and shows a "
            "few frames of each as one labelled picture.",
            search_aliases=["xy plot", "grid", "contact sheet", "lambda", "compare weights"],
            inputs=[
                io.Model.Input("model", tooltip="A UniVid model, with any LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="Prompt and picture, from Encode Dual Prompt."),
                io.Conditioning.Input("negative", tooltip="What to lead away from, from Encode Dual Prompt."),
                io.Vae.Input("vae", tooltip="The VAE of the model, from Load UniVid."),
                io.Latent.Input("latent", tooltip="The size of each clip; small ones keep the sweep short."),
                *sampling_inputs(),
                weights("text_weights", "lambda_t of each row"),
                weights("image_weights", "lambda_v of each column; 0 alone where there is no picture"),
                io.Float.Input(
                    "guidance_scale", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="Joint guidance: how strongly text and picture are followed. 1 = none. The "
                    "built-in model likes 1, full-size models 7.5.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet", tooltip="The grid: a text weight a row, a picture weight a column."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, vae, latent, text_weights, image_weights, guidance_scale, **run
    ) -> io.NodeOutput:
        rows, columns = _numbers("text_weights", text_weights), _numbers("image_weights", image_weights)
        check_picture(positive, max(columns), "image_weights")
        guider, cells = Joint(guidance_scale), len(rows) * len(columns)
        tell_what_steers(positive, RAISE, guider, negative)
        clips = []
        for number, (text, image) in enumerate((t, i) for t in rows for i in columns):
            weights = curves.modality_weights(curves.Weight(text), curves.Weight(image))
            steered = with_weights(positive, weights)
            with span(number / cells, (number + SAMPLING) / cells):
                out, _ = sample(model, steered, negative, latent, guider=guider, **run)
            with span((number + SAMPLING) / cells, (number + 1) / cells):
                clips.append(as_clip(decode(vae, spread(out["samples"], FRAMES_SHOWN))))
        page = sweep_sheet(
            [clips[start : start + len(columns)] for start in range(0, cells, len(columns))],
            title="",
            row_labels=[f"text {weight:g}" for weight in rows],
            column_labels=[f"picture {weight:g}" for weight in columns],
            frames_shown=FRAMES_SHOWN,
            large_labels=True,
        )
        return io.NodeOutput(as_image(page), ui=picture_of(cls, page))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    if not text.strip() or ".." in text:
        raise ValueError(f"{name} must be a list of numbers such as 0, 0.5, 1, got {text!r}.")
    try:
        return curves.parse(text).values
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
