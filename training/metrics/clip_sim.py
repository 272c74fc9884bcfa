"""CLIP-SIM (Wu et al. 2021, GODIVA): how well frames agree with the prompt, as CLIP sees both.

The cosine of a frame's and the prompt's embedding, the mean of it over all frames of a video, then over
videos; -1 to 1.
"""

import numpy as np

from .clip import CLIP
from .metric import Evidence, Metric, mean_figure


def figure(evidence: Evidence) -> dict:
    """The mean over videos and its interval."""
    texts = unit(evidence.features.texts(evidence.prompts))
    pairs = zip(evidence.generated, texts, strict=True)
    return mean_figure([float((unit(frames) @ text).mean()) for frames, text in pairs], evidence)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows `[n d]` of length 1."""
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


CLIP_SIM = Metric("clip-sim", "CLIP-SIM", "higher", CLIP, "all", figure, prompts=True)
