"""Checkpoints: the native format, foreign ones imported and exported, and what is inside a file."""

from .export import export
from .imports import import_file
from .inspect import describe
from .native import built_in_path, load, save

__all__ = ["built_in_path", "describe", "export", "import_file", "load", "save"]
