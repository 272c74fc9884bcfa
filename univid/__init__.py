"""UniVid: one diffusion model that makes videos from text, from a picture, or from both.

from univid import generate, load

video = generate(load(), "a red circle moves left on a black background")  # [1 3 t h w] in -1..1
"""

__all__ = ["generate", "load"]


def __getattr__(name: str):
    """Import `load` and `generate` at first use: they bring torch, which --help does not need."""
    if name == "load":
        from .checkpoints import load

        return load
    if name == "generate":
        from .pipeline import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
