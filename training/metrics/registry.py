"""All metrics by the names that the command line takes."""

from .clip_fid import CLIP_FID
from .clip_sim import CLIP_SIM
from .fid import FID, FID_VID
from .frame_metrics import FRAME_METRICS
from .fvd import FVD
from .inception_score import INCEPTION_SCORE
from .metric import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (FVD, INCEPTION_SCORE, FID, FID_VID, CLIP_FID, CLIP_SIM, *FRAME_METRICS)
}
