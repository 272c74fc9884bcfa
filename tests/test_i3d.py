"""I3D, and FVD with its weights, against cd-fvd's at random weights."""

import numpy as np
import pytest
import torch
from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d
from cdfvd.third_party.i3d.utils import frechet_distance, preprocess_i3d
from metric_weights import blobs, unchecked, write_clips
from torch import nn

from training.__main__ import main
from training.metrics import i3d
from training.metrics.extract import load
from training.metrics.fvd import WEIGHTS
from training.metrics.registry import METRICS
from training.metrics.weights import WeightFile
from univid.files.regular import read_json

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference():
    """cd-fvd's network, with statistics by which a layer that is left out is found."""
    torch.manual_seed(0)
    network = InceptionI3d(400).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.02, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(reference.state_dict(), folder / WEIGHTS)
    return folder


@torch.inference_mode()
def test_logits_are_cd_fvds(reference, weights, monkeypatch):
    unchecked(monkeypatch, "fvd")
    loaded = load(METRICS["fvd"].extractor, weights, CPU)
    (clip,) = blobs(1, frames=17, size=(90, 131))
    ours, theirs = loaded.features(clip), reference(preprocess_i3d(clip[None])).numpy()
    spread = theirs.std()
    assert ours.shape == (1, 400) and spread > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * spread)
    # a control: with as much padding on both sides, as PyTorch's layers have it, the numbers are others
    monkeypatch.setattr(i3d, "pad_same", _even)
    assert np.abs(loaded.features(clip) - theirs).max() > 0.1 * spread


def _even(x, kernel, stride):
    return nn.functional.pad(x, [size // 2 for size in kernel[::-1] for _ in range(2)])


@pytest.mark.slow
def test_fvd_is_cd_fvds(reference, weights, tmp_path, monkeypatch):
    unchecked(monkeypatch, "fvd")
    sides = [list(blobs(6, seed, frames=16, size=(48, 64), noise=10 * seed)) for seed in (1, 2)]
    real, made = (write_clips(tmp_path / f"{seed}", clips) for seed, clips in enumerate(sides))
    out = tmp_path / "scores.json"
    main(["score", str(made), "--real", str(real), "--metrics", "fvd", "--weights", str(weights),
          "--resamples", "0", "--out", str(out)])  # fmt: skip
    figure = read_json(out)["metrics"]["fvd"]
    with torch.inference_mode():
        theirs = [torch.cat([reference(preprocess_i3d(clip[None])) for clip in clips]) for clips in sides]
    assert figure["weights"]["file"] == WEIGHTS
    assert figure["value"] == pytest.approx(float(frechet_distance(*(x.double() for x in theirs))), rel=1e-3)


def test_a_file_is_known_by_its_git_blob(weights):
    with pytest.raises(ValueError, match="is another file: its git blob is .*, not a867b87ac3a9"):
        load(METRICS["fvd"].extractor, weights, CPU)
    file = METRICS["fvd"].extractor.files[1]
    assert f"{WEIGHTS} (git blob a867b87ac3a9" in str(file)


def test_git_blobs_are_gits(tmp_path):
    """That of `echo hello | git hash-object --stdin`."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"hello\n")
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"
    assert WeightFile("file.pt", "there", git_blob=blob).check(path)
    with pytest.raises(ValueError, match=f"its git blob is {blob}, not 0; take it from there"):
        WeightFile("file.pt", "there", git_blob="0").check(path)
