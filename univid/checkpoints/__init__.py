"""Checkpoints: the native format, foreign ones imported and exported, LoRAs, and what is inside a file."""

from .export import export
from .imports import import_file
from .inspect import describe
from .lora import apply_lora
from .native import built_in_path, save
from .opened import load

__all__ = ["apply_lora", "built_in_path", "describe", "export", "import_file", "load", "save"]
