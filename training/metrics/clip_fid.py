"""CLIP-FID (Kynkaanniemi et al. 2023): FID in the eyes of CLIP instead of Inception, as clean-fid has it."""

from .clip import CLIP
from .distance import distance_figure
from .metric import Metric

CLIP_FID = Metric("clip-fid", "CLIP-FID", "lower", CLIP, "frame", distance_figure, real=True)
