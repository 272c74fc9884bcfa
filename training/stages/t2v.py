"""Stage 1, text to video: everything but the image stream learns.

Single frames skip every temporal layer, so they move spatial parameters only (paper: "for image inputs, we
exclusively updated the spatial layer"); clips move both.
"""

from .conditions import NONE, TEXT, Stage, is_image_stream

STAGE = Stage(trains=lambda name: not is_image_stream(name), modes={NONE: 0.1, TEXT: 0.9})
