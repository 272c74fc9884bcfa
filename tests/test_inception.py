"""FID's network and its pictures: the resize against clean-fid's, the features against torch-fidelity's."""

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from metric_weights import Inception, replace, unchecked
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as reference

from training.metrics.extract import load
from training.metrics.fid import LAYERS, resize
from training.metrics.registry import METRICS

CPU = torch.device("cpu")
PTH = METRICS["fid"].extractor.files[1].name


@pytest.mark.parametrize("size", [(64, 64), (240, 320), (576, 320), (720, 1280), (17, 900), (299, 299)])
def test_pictures_are_resized_as_clean_fid_does(size):
    frames = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    ours = resize(frames)[0].movedim(0, 2).numpy()
    np.testing.assert_allclose(ours, build_resizer("clean")(frames[0]), atol=1e-3)
    if size != (299, 299):  # a control: the resize of torch-fidelity is another one
        other = reference.interpolate_bilinear_2d_like_tensorflow1x(
            torch.from_numpy(frames).movedim(3, 1).float(), (299, 299), align_corners=False
        )
        assert np.abs(ours - other[0].movedim(0, 2).numpy()).max() > 10


@pytest.fixture(scope="module")
def network():
    """torch-fidelity's InceptionV3 at random weights."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(reference.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        made = reference.FeatureExtractorInceptionV3("random", ["2048"])
    for module in made.modules():  # so that an unused statistic or bias is found
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5), module.bias.data.normal_(std=0.1)
    return made


def test_features_are_torch_fidelitys(network, tmp_path, monkeypatch):
    frames = np.random.default_rng(1).integers(0, 256, (2, 299, 299, 3), np.uint8)
    (expected,) = network(torch.from_numpy(frames).movedim(3, 1))
    unchecked(monkeypatch, "fid")
    torch.save(network.state_dict(), tmp_path / PTH)
    ours = load(METRICS["fid"].extractor, tmp_path, CPU)
    np.testing.assert_allclose(ours.features(frames), expected, rtol=1e-4, atol=1e-5)
    assert ours.file.name == PTH and expected.std() > 1e-3

    # the same layers as TorchScript, as StyleGAN2-ADA's file has them: it comes first
    whole = Inception()
    whole.layers = nn.Sequential(*(getattr(network, name) for name in LAYERS))
    torch.jit.trace(whole, torch.rand(1, 3, 299, 299)).save(tmp_path / "inception-2015-12-05.pt")
    ours = load(METRICS["fid"].extractor, tmp_path, CPU)
    np.testing.assert_allclose(ours.features(frames), expected, rtol=1e-4, atol=1e-5)
    assert ours.file.name == "inception-2015-12-05.pt"

    (tmp_path / "inception-2015-12-05.pt").unlink()
    state = network.state_dict()
    state.pop("Mixed_7c.branch1x1.conv.weight")
    torch.save(state, tmp_path / PTH)
    with pytest.raises(ValueError, match="is not what InceptionV3 2015-12-05 needs"):
        load(METRICS["fid"].extractor, tmp_path, CPU)


def test_weights_of_other_bytes_are_never_opened(network, tmp_path, monkeypatch):
    torch.save(network.state_dict(), tmp_path / PTH)
    opened = []
    replace(monkeypatch, "fid", load=lambda *given: opened.append(given))
    with pytest.raises(ValueError, match="is another file: its sha256 is [0-9a-f]{64}, not 6726825d0af5"):
        load(METRICS["fid"].extractor, tmp_path, CPU)
    assert not opened
