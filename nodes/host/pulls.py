"""What PST Sampler shows of its guidance: the pulls of text and picture, step by step."""

import numpy as np

from ...univid.guidance import Pulls
from ...univid.plot import line_plot

SIZE = (400, 200)


def plot(pulls: list[Pulls | None]) -> tuple[np.ndarray, list[float]]:
    """The plot, uint8 `[h w 3]`, and its numbers: text, image, cosine of the first call, of the second, ...

    Calls whose branches do not show the pulls are left out; in joint mode these are all.
    """
    shown = [p for p in pulls if p is not None]
    sizes = {"text": [p.text for p in shown], "picture": [p.image for p in shown]}
    title = "size of the pulls" if shown else "no pulls: joint guidance, or a scale of 0"
    sizes_plot = line_plot(sizes if shown else {}, title, "model call", "latent units", SIZE)
    cosine_plot = line_plot(
        {"cosine": [p.cosine for p in shown]} if shown else {},
        "their direction",
        "model call",
        "cosine",
        SIZE,
    )
    values = [value for p in shown for value in (p.text, p.image, p.cosine)]
    return np.concatenate([sizes_plot, cosine_plot]), values
