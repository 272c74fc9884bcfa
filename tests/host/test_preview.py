"""What the node shows while it samples."""

import numpy as np
import pytest
import torch
from host_tests.random_model import write


@pytest.fixture
def previews(pack, monkeypatch):
    """Previews on, as people set them in the interface."""
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    return args


def test_the_built_in_model_previews_frames_as_its_own_vae_decodes_them(previews):
    from comfy.cli_args import LatentPreviewMethod
    from univid_pack.nodes.host.model import load_model
    from univid_pack.nodes.host.preview import previewer_of
    from univid_pack.univid.checkpoints import load, native
    from univid_pack.univid.video import read_image

    sample = torch.nn.functional.interpolate(
        read_image(native.built_in_path().with_name("sample.png")), (64, 64)
    )
    video = torch.stack([sample, sample.flip(-1)], 2)  # two frames
    latents = load(dtype=torch.float32, parts=["vae"]).vae.encode(video)[0].transpose(0, 1)
    model = load_model(native.built_in_path())
    _, picture, _ = previewer_of(model).decode_latent_to_preview_image("JPEG", latents)
    assert picture.size == (512, 256)
    seen = np.asarray(picture.resize((128, 64))).astype(float) / 127.5 - 1
    truth = torch.cat(video[0].unbind(1), -1).permute(1, 2, 0).numpy()
    error = np.abs(seen - truth).mean()
    assert error < 0.1 and np.abs(seen - truth[..., ::-1]).mean() > 1.5 * error  # blue is not red
    previews.preview_method = LatentPreviewMethod.NoPreviews
    assert previewer_of(model) is None


def test_other_models_preview_as_the_host_does_it_and_off_is_off(previews, tmp_path):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod
    from univid_pack.nodes.host.model import load_model
    from univid_pack.nodes.host.preview import previewer_of

    model = load_model(write(tmp_path), "fp32")
    assert isinstance(previewer_of(model), latent_preview.Latent2RGBPreviewer)
    previews.preview_method = LatentPreviewMethod.NoPreviews
    assert previewer_of(model) is None


def test_the_plot_of_the_pulls_and_its_numbers(pack):
    """Where it is shown is in test_shown.py."""
    from univid_pack.nodes.host.pulls import plot
    from univid_pack.univid.guidance import Pulls

    picture, values = plot([Pulls(0.5, 0.25, -0.1), None, Pulls(0.4, 0.2, 0.3)])
    assert values == [0.5, 0.25, -0.1, 0.4, 0.2, 0.3]
    assert picture.ndim == 3 and picture.dtype == "uint8" and picture.std() > 0
    empty, none = plot([None, None])
    assert none == [] and empty.shape == picture.shape
