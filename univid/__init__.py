"""UniVid: one diffusion model that makes videos from text, from a picture, or from both.

from univid import generate, load

video = generate(load(), "a red circle moves left on a black background")  # [1 3 t h w] in -1..1

Clip, Source, Sampling and Masks are the groups of `generate`'s options.
"""

import importlib

__version__ = "0.1.0"  # as in pyproject.toml
HOMES = {
    "load": "checkpoints",
    "generate": "pipeline",
    "Clip": "pipeline",
    "Source": "pipeline",
    "Sampling": "pipeline",
    "Picture": "pipeline",
    "Masks": "steer",
}
__all__ = list(HOMES)


def __getattr__(name: str):
    """Import what is public at first use: it brings torch, which --help does not need."""
    if name in HOMES:
        return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
