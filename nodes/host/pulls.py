"""What PST Sampler shows of its guidance: the pulls of text and picture, step by step."""

import numpy as np
from torch import Tensor

from ...univid.guidance import Pulls
from ...univid.plot import line_plot
from .decode import as_image
from .preview import show

SIZE = (400, 200)


def plot(pulls: list[Pulls | None]) -> tuple[Tensor, list[float]]:
    """The plot as IMAGE and on the node, and its numbers: text, image, cosine of the first call, ...

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
    picture = np.concatenate([sizes_plot, cosine_plot])
    if shown:
        show(picture)
    return as_image(picture), [value for p in shown for value in (p.text, p.image, p.cosine)]
