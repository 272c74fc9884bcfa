"""Checkpoints: the native format, Stable Diffusion inflated, and what is inside a file."""

from .inflate import inflate
from .inspect import describe
from .native import built_in_path, load, save

__all__ = ["built_in_path", "describe", "inflate", "load", "save"]
