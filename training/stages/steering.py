"""Stage 3 to the end: everything learns, and a picture alone is shown as often as text alone."""

from .conditions import BOTH, IMAGE, IMAGE_ONLY, NONE, TEXT, Stage

STAGE = Stage(
    trains=lambda name: True, modes={NONE: 0.05, TEXT: 0.25, IMAGE: 0.15, IMAGE_ONLY: 0.3, BOTH: 0.25}
)
