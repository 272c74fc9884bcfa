"""FVD (Unterthiner et al. 2018): the Frechet distance of videos in the eyes of I3D, trained on Kinetics-400.

As StyleGAN-V measures it (Skorokhodov et al. 2022): 16 frames, the 400 numbers before the softmax. The
network is StyleGAN-V's TorchScript, or ours with the weights that VideoGPT, TATS and cd-fvd measure with.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from univid.files.weights import open_weights

from . import i3d
from .distance import distance_figure
from .extract import Extractor, Features
from .metric import Metric
from .weights import WeightFile

SIZE = 224
WEIGHTS = "i3d_pretrained_400.pt"


def load(path: Path, device: torch.device) -> Features:
    """I3D as TorchScript, which resizes to 224 x 224 and goes to -1..1 by itself, or its weights alone."""
    logits = (_with_weights if path.name == WEIGHTS else _torch_script)(path, device)

    def features(frames: np.ndarray) -> np.ndarray:
        return logits(torch.from_numpy(frames).to(device).float()).float().cpu().numpy()

    return features


def _torch_script(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    network = torch.jit.load(path, map_location=device).eval()

    def logits(frames: Tensor) -> Tensor:
        video = rearrange(frames, "t h w c -> 1 c t h w").contiguous()
        return network(video, rescale=True, resize=True, return_features=True)

    return logits


def _with_weights(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    file, network = open_weights(path), i3d.I3D()
    network.load_state_dict({name: file.read(name) for name in file.entries})
    network.to(device).eval()

    def logits(frames: Tensor) -> Tensor:
        pictures = rearrange(frames, "t h w c -> t c h w")
        resized = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear")  # without antialiasing
        return network(rearrange(resized, "t c h w -> 1 c t h w") / 127.5 - 1)

    return logits


I3D = Extractor(
    "I3D Kinetics-400",
    400,
    f"{SIZE} x {SIZE}, bilinear; logits",
    load,
    (
        WeightFile(
            "i3d_torchscript.pt",
            "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        ),
        WeightFile(
            WEIGHTS,
            "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
            git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
        ),
    ),
)
FVD = Metric("fvd", "FVD", "lower", I3D, "clip", distance_figure, real=True)
