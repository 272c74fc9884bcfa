"""Finetuning on one's own clips: low-rank adapters beside the frozen network, or all of its parameters."""

from . import joint, t2v
from .conditions import Stage

LORA = Stage(trains=lambda name: ".lora_A." in name or ".lora_B." in name, modes=joint.STAGE.modes)
FULL = joint.STAGE
TEXT_MODES = t2v.STAGE.modes  # of both, for a network that sees no pictures
