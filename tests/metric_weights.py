"""Networks for tests of metrics, as TorchScript under the names of the real ones, and clips to score."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from training.metrics.registry import METRICS
from training.metrics.weights import WeightFile
from univid.video import write_frames

FILES = {"fvd": "i3d_torchscript.pt", "is": "c3d_ucf101.pt", "fid": "inception-2015-12-05.pt"}


class I3D(nn.Module):
    """A random network that is called as I3D is."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weights", torch.randn(2 * 3 * 8 * 16, 400, generator=generator) / 28)

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if resize:
            x = F.interpolate(x, size=[x.size(2), 224, 224], mode="trilinear", align_corners=False)
        if rescale:
            x = x / 127.5 - 1
        steps = F.pad((x[..., 1:] - x[..., :-1]).abs(), [0, 1])
        x = F.adaptive_avg_pool3d(torch.cat([x, 10 * steps], 1), [8, 4, 4]).flatten(1) @ self.weights
        return x if return_features else x.softmax(1)


class C3D(nn.Module):
    """A random classifier of clips of any size."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.randn(48, 101, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        return ((F.adaptive_avg_pool3d(x, [4, 2, 2]).flatten(1) / 128 - 1) @ self.weights).softmax(1)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer(
            "weights", torch.randn(192, 2048, generator=torch.Generator().manual_seed(2)) / 14
        )

    def forward(self, x):
        return (F.adaptive_avg_pool2d(x, [8, 8]).flatten(1) @ self.weights)[:, :, None, None]


class Inception(nn.Module):
    """A random network whose `layers` take pictures of 299 x 299 in -1..1."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers((x - 128) / 128)


def write_networks(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in (("fvd", I3D()), ("is", C3D()), ("fid", Inception())):
        torch.jit.script(network.eval()).save(folder / FILES[name])
    return folder


def replace(monkeypatch, name, /, **changes):
    """Let a metric have another extractor."""
    metric = METRICS[name]
    extractor = dataclasses.replace(metric.extractor, **changes)
    monkeypatch.setitem(METRICS, name, dataclasses.replace(metric, extractor=extractor))
    return METRICS[name]


def unchecked(monkeypatch, *names):
    """Let random networks be taken for the real ones, whose checksums they lack."""
    for name in names:
        files = METRICS[name].extractor.files
        replace(monkeypatch, name, files=tuple(WeightFile(file.name, file.source) for file in files))


def blobs(number, seed=0, frames=18, size=(48, 64), noise=0):
    """Clips uint8 `[t h w 3]` of one soft spot each that moves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    time = np.linspace(0, 1, frames)[:, None, None]
    for _ in range(number):
        start, end = rng.uniform(0, 1, (2, 2)) * size[0]
        place = [(1 - time) * a + time * b for a, b in zip(start, end, strict=True)]
        spot = np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / 80)[..., None]
        clip = 255 * (spot * rng.uniform(0, 1, 3) + (1 - spot) * rng.uniform(0, 0.4, 3))
        yield (clip + noise * rng.normal(size=clip.shape)).clip(0, 255).round().astype(np.uint8)


def write_clips(folder, clips, suffix=".npy", fps=8, prompt=None):
    """Write clips as files, or, without a suffix, as folders of frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frames in enumerate(clips):
        name = f"clip {number:03d}"
        if suffix == ".npy":
            np.save(folder / f"{name}.npy", frames)
        else:
            write_frames(frames, folder / f"{name}{suffix}", fps)
        if prompt:
            (folder / f"{name}.txt").write_text(prompt(number), encoding="utf-8")
    return folder


def batch(frames):
    return rearrange(torch.from_numpy(frames).float(), "t h w c -> 1 c t h w")
