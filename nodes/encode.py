"""Encode Dual Prompt: what is said and what is shown, as conditionings."""

from comfy_api.latest import io

from ..univid.travel import LAST_FRAME
from .host.conditioning import extended
from .host.prompts import encode_dual
from .host.relatives import shared_inputs
from .host.steering import tell_what_steers


class UniVidEncodeDualPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidEncodeDualPrompt",
            display_name="Encode Dual Prompt",
            category="UniVid",
            description="A prompt, an image, or both, as positive and negative conditioning. Weighting and "
            "embeddings work as in CLIP Text Encode. Prompt travel: `0: a red circle / 12: a blue circle`. "
            "Scenes: `12 frames: a red circle / 12 frames: a blue circle`.",
            search_aliases=[
                "clip text encode",
                "prompt",
                "image prompt",
                "prompt travel",
                "prompt schedule",
                "scenes",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder, from Load UniVid or CLIPLoader (ViT-H-14)."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder, from Load UniVid or CLIPVisionLoader (ViT-H-14). Needed "
                    "where an image is connected.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video shows. `0: one prompt / 12: another` blends from the one at "
                    "frame 0 to the other at frame 12; keys follow ` / ` or start a line, with a space after "
                    "the colon where a number comes next. Prompt travel needs `frames`. Scenes: 12 frames: "
                    "one / 12 frames: another; with 12 frames fade 4: another 4 frames are blended.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What guidance leads away from; empty is a good start. Travels like the prompt.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="What the video takes content and style from. Any size: it is squashed to the "
                    "encoder's square, and transparency becomes black. A batch is one image a frame, so it "
                    "needs as many images as the clip has frames.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=LAST_FRAME,
                    optional=True,
                    tooltip="Length of the clip in frames, from Empty UniVid Latent. Only prompt travel "
                    "needs it; 0 = not given.",
                ),
                io.Float.Input(
                    "fps_number",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="For models that are told the frame rate (VideoCrafter, DynamiCrafter): how "
                    "much moves from frame to frame, not how fast it is played. 0 = the model's own.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="From Load UniVid. For models that also take the picture as latents "
                    "(DynamiCrafter), together with `latent`; others refuse it.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The clip's, from Empty UniVid Latent: the size to which `vae` encodes the "
                    "picture, cropped at its centre.",
                ),
                io.Image.Input(
                    "last_image",
                    optional=True,
                    tooltip="What the last frame shows, for models that go from one picture to another; "
                    "without it they return to `image`.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="Prompt and image, each with weight 1, for Set Modality Weights or a sampler.",
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative prompt, and no image, for a sampler.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip, prompt, negative, clip_vision=None, image=None, frames=0, fps_number=0.0, vae=None,
        latent=None, last_image=None,
    ) -> io.NodeOutput:  # fmt: skip
        extras = shared_inputs(fps_number, vae, latent, image, last_image)
        pair = encode_dual(clip, clip_vision, prompt, negative, image, frames)
        positive, negative = (extended(conditioning, extras) for conditioning in pair)
        tell_what_steers(positive, "write a prompt or connect an image")
        return io.NodeOutput(positive, negative)
