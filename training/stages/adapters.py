"""Stage 2: the image projection and the whole dual-stream cross-attention learn T2V, I2V and (T+I)2V."""

from univid.initialization import start_image_stream

from .conditions import BOTH, IMAGE, IMAGE_ONLY, NONE, TEXT, Stage, is_image_stream

# paper: T2V, I2V and (T+I)2V; we: these shares, and half of the I samples without the text stream, so that
# both ends of the steering are trained.
MODES = {NONE: 0.1, TEXT: 0.3, IMAGE: 0.15, IMAGE_ONLY: 0.15, BOTH: 0.3}


STAGE = Stage(
    trains=lambda name: name.startswith("image_projection.") or ".attn2." in name,
    modes=MODES,
    begin=start_image_stream,
)
# By option: the text stream, and with it what the model does without a picture, stays bit for bit as it was.
KV = Stage(trains=is_image_stream, modes=MODES, begin=start_image_stream)
