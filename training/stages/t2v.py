"""Stage 1, text to video: everything but the image stream learns.

Single frames skip every temporal layer, so they move spatial parameters only (paper: "for image inputs, we
exclusively updated the spatial layer"); clips move both.
"""

from .unet import NONE, TEXT, Stage


def is_image_stream(name: str) -> bool:
    return name.startswith("image_projection.") or name.endswith(("to_k_image.weight", "to_v_image.weight"))


STAGE = Stage(trains=lambda name: not is_image_stream(name), modes={NONE: 0.1, TEXT: 0.9})
