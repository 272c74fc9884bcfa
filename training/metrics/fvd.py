"""FVD (Unterthiner et al. 2018): the Frechet distance of videos in the eyes of I3D, trained on Kinetics-400.

As StyleGAN-V measures it (Skorokhodov et al. 2022): 16 frames, the 400 numbers before the softmax.
"""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from .distance import distance_figure
from .extract import Extractor, Features
from .metric import Metric
from .weights import WeightFile


def load(path: Path, device: torch.device) -> Features:
    """I3D as TorchScript; it resizes to 224 x 224 and goes to -1..1 by itself."""
    network = torch.jit.load(path, map_location=device).eval()

    def features(frames: np.ndarray) -> np.ndarray:
        video = torch.from_numpy(frames).to(device).float()
        video = rearrange(video, "t h w c -> 1 c t h w").contiguous()
        return network(video, rescale=True, resize=True, return_features=True).float().cpu().numpy()

    return features


I3D = Extractor(
    "I3D Kinetics-400",
    400,
    "224 x 224, bilinear, as TorchScript does it; logits",
    load,
    (
        WeightFile(
            "i3d_torchscript.pt",
            "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        ),
    ),
)
FVD = Metric("fvd", "FVD", "lower", I3D, "clip", distance_figure, real=True)
