"""Finetuning on one's own clips: low-rank adapters beside the frozen network, or all of its parameters."""

from . import joint, t2v
from .conditions import BOTH, IMAGE, IMAGE_ONLY, TEXT, Stage

LORA = Stage(trains=lambda name: ".lora_A." in name or ".lora_B." in name, modes=joint.STAGE.modes)
FULL = joint.STAGE
# Of both kinds. Guidance is what is distilled, and without a condition there is none.
DISTILL = Stage(trains=lambda name: True, modes={TEXT: 0.4, BOTH: 0.4, IMAGE: 0.1, IMAGE_ONLY: 0.1})
TEXT_MODES = t2v.STAGE.modes  # of both, for a network that sees no pictures
