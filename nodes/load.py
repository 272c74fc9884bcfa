"""Load UniVid: one file to MODEL, CLIP, CLIP_VISION and VAE."""

import logging

from comfy_api.latest import io

from ..univid.checkpoints.origins import ORIGINS
from ..univid.dtypes import STORED_DTYPES
from ..univid.messages import sentence
from .host import files
from .host.encoders import load_encoders
from .host.model import load_model

AUTO = "auto"  # let a file's tensors say what it is
ABSENT = "Where the file has none, the node behind it says which loader to use."

logger = logging.getLogger(__name__)


class UniVidLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidLoad",
            display_name="Load UniVid",
            category="UniVid",
            description="Loads a UniVid checkpoint, or the built-in one that needs no download. Files of "
            "VideoCrafter2, VideoCrafter1-I2V, DynamiCrafter and ModelScope work as they are. A Stable "
            "Diffusion 2.1 file becomes an untrained UniVid: every frame a picture of its own.",
            search_aliases=["load checkpoint", "model loader", "video model", "text to video"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=files.checkpoints(),
                    tooltip="'built-in' is small and comes with the pack, and so do its experts for known "
                    "frames and for larger ones. The others are "
                    f"{', '.join(files.SUFFIXES[:-1])} and {files.SUFFIXES[-1]} files in the model folders "
                    f"{', '.join(files.FOLDERS)}.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *STORED_DTYPES],
                    default="auto",
                    advanced=True,
                    tooltip="Type of the MODEL's weights in memory. auto: what this machine runs best. fp8 "
                    "takes half the memory of fp16 and costs some quality. CLIP, CLIP_VISION and VAE follow "
                    "the settings of ComfyUI.",
                ),
                io.Combo.Input(
                    "source",
                    options=[AUTO, *ORIGINS],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Which model a file of another project is, where several have the same tensors. "
                    "It sets size, guidance and how the picture enters. auto: what the tensors show.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The video model, for LoRA loaders, PST Sampler and KSampler."),
                io.Clip.Output(tooltip=f"The text encoder, for Encode Dual Prompt. {ABSENT}"),
                io.ClipVision.Output(tooltip=f"The image encoder, for Encode Dual Prompt. {ABSENT}"),
                io.Vae.Output(tooltip=f"Between pictures and latents, for Decode Video. {ABSENT}"),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint=None):
        try:
            if checkpoint is not None:  # else another node gives it
                files.checkpoint_path(checkpoint)
        except ValueError as error:
            return sentence(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint, dtype="auto", source=AUTO):
        return files.fingerprint(checkpoint)

    @classmethod
    def execute(cls, checkpoint, dtype="auto", source=AUTO) -> io.NodeOutput:
        path = files.checkpoint_path(checkpoint)
        name = None if source == AUTO else source
        model, encoders = load_model(path, dtype, name), load_encoders(path, name)
        logger.info("UniVid: loaded %s with weights as %s", checkpoint, model.model_dtype())
        return io.NodeOutput(model, *encoders)
