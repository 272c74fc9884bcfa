"""Stage 3 with pictures first: everything learns, mostly under a picture, and under one alone most of all."""

from .conditions import BOTH, IMAGE, IMAGE_ONLY, NONE, TEXT, Stage

STAGE = Stage(
    trains=lambda name: True, modes={NONE: 0.03, TEXT: 0.12, IMAGE: 0.2, IMAGE_ONLY: 0.4, BOTH: 0.25}
)
