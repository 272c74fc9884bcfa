"""Decode Video: latents into frames and a VIDEO."""

from fractions import Fraction

from comfy_api.latest import InputImpl, Types, io

from .host.decode import decode
from .host.preview import clip_of


class UniVidDecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniVidDecodeVideo",
            display_name="Decode Video",
            category="UniVid",
            description="Turns a clip's latents into its frames, a few at a time, and into a video, which it "
            "shows.",
            search_aliases=["vae decode", "vae decode video", "latent to video"],
            inputs=[
                io.Latent.Input("samples", tooltip="The clip's latents, one batch entry a frame."),
                io.Vae.Input(
                    "vae",
                    tooltip="From Load UniVid, or any Stable Diffusion VAE that suits the model.",
                ),
                io.Float.Input(
                    "fps", default=8.0, min=0.01, max=1000.0, step=0.1,
                    tooltip="Frames per second; connect Empty UniVid Latent's for the model's own.",
                ),
                io.Int.Input(
                    "chunk", default=8, min=1, max=4096, advanced=True,
                    tooltip="Frames decoded at once at most. Fewer need less memory and can be interrupted "
                    "sooner; the result is the same.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames, for image nodes and previews."),
                io.Video.Output(display_name="video", tooltip="The clip without sound, for Save Video."),
                io.Float.Output(
                    display_name="fps", tooltip="The frames per second, for the nodes that follow."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, vae, fps, chunk=8) -> io.NodeOutput:
        if not 0.01 <= fps <= 1000:
            raise ValueError(f"fps must be from 0.01 to 1000, got {fps}.")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 frame, got {chunk}.")
        images = decode(vae, samples["samples"], chunk)
        rate = Fraction(fps).limit_denominator(1001)  # holds 30000/1001 and what encoders can count in
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=rate))
        return io.NodeOutput(images, video, fps, ui=clip_of(video))
