"""FID (Heusel et al. 2017) of frames, resized as clean-fid does (Parmar et al. 2022).

`fid` counts one random frame of each video, so that its pictures are independent, `fid-vid` (Show-1) all the
frames that FVD counts. InceptionV3 is the translation of TensorFlow's of 2015-12-05, as TorchScript
(StyleGAN2-ADA's) or in torch-fidelity's module, whose package then has to be there.
"""

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from univid.files.weights import open_weights

from .distance import distance_figure
from .extract import Extractor, Features
from .metric import Metric
from .weights import WeightFile

SIZE = 299
LAYERS = (  # of torch-fidelity's module, from the picture to 2048 numbers
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
    "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d",
    "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip


def load(path: Path, device: torch.device) -> Features:
    """InceptionV3 to its last pooling, by a TorchScript file or by torch-fidelity's weights.

    Raises:
        ValueError: torch-fidelity's weights without its package.
    """
    network = _torch_fidelity(path) if path.suffix == ".pth" else torch.jit.load(path, "cpu").eval().layers
    network = network.to(device)

    def features(frames: np.ndarray) -> np.ndarray:
        pictures = (resize(frames).float().to(device) - 128) / 128
        return network(pictures).flatten(1).float().cpu().numpy()

    return features


def resize(frames: np.ndarray) -> Tensor:
    """Frames uint8 `[t h w 3]` to `[t 3 299 299]` in 0..255, float64: bicubic, antialiased, not rounded."""
    pictures = rearrange(torch.from_numpy(frames).double(), "t h w c -> t c h w")
    return F.interpolate(pictures, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)


def _torch_fidelity(path: Path) -> nn.Module:
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as module
    except ImportError as error:
        raise ValueError(
            f"{path.name} is torch-fidelity's and needs its package; pip install torch-fidelity, or take "
            f"{INCEPTION.files[0].name}."
        ) from error
    file, copy = open_weights(path), io.BytesIO()  # the package would unpickle whatever the file holds
    torch.save({name: file.read(name) for name in file.entries}, copy)
    copy.seek(0)
    network = module.FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=copy)
    return nn.Sequential(*(getattr(network, name) for name in LAYERS))


INCEPTION = Extractor(
    "InceptionV3 2015-12-05",
    2048,
    "299 x 299, bicubic with antialiasing as clean-fid's; last pooling",
    load,
    (
        WeightFile(
            "inception-2015-12-05.pt",
            "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
            "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        ),
        WeightFile(
            "weights-inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
    ),
)
FID = Metric("fid", "FID", "lower", INCEPTION, "frame", distance_figure, real=True)
FID_VID = Metric("fid-vid", "FID-vid", "lower", INCEPTION, "clip", distance_figure, real=True)
