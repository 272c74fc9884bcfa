"""What the node shows while it samples."""

import numpy as np
import pytest
import torch
from host_tests.random_model import write
from PIL import Image


@pytest.fixture
def previews(pack, monkeypatch):
    """Previews on, as people set them in the interface."""
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    return args


def test_the_built_in_model_previews_frames_as_its_own_vae_decodes_them(previews):
    from univid_pack.nodes.host.model import load_model
    from univid_pack.nodes.host.preview import previewer_of
    from univid_pack.univid.checkpoints import native
    from univid_pack.univid.video import read_image

    sample = torch.nn.functional.interpolate(
        read_image(native.built_in_path().with_name("sample.png")), (64, 64)
    )
    video = torch.stack([sample, sample.flip(-1)], 2)  # two frames
    latents = native.load(dtype=torch.float32, parts=["vae"]).vae.encode(video)[0].transpose(0, 1)
    _, picture, _ = previewer_of(load_model(native.built_in_path())).decode_latent_to_preview_image(
        "JPEG", latents
    )
    assert picture.size == (512, 256)
    seen = np.asarray(picture.resize((128, 64))).astype(float) / 127.5 - 1
    truth = torch.cat(video[0].unbind(1), -1).permute(1, 2, 0).numpy()
    error = np.abs(seen - truth).mean()
    assert error < 0.1 and np.abs(seen - truth[..., ::-1]).mean() > 1.5 * error  # blue is not red


def test_other_models_preview_as_the_host_does_it_and_off_is_off(previews, tmp_path):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod
    from univid_pack.nodes.host.model import load_model
    from univid_pack.nodes.host.preview import previewer_of

    model = load_model(write(tmp_path), "fp32")
    assert isinstance(previewer_of(model), latent_preview.Latent2RGBPreviewer)
    previews.preview_method = LatentPreviewMethod.NoPreviews
    assert previewer_of(model) is None


def test_the_plot_of_the_pulls_is_the_last_preview(pack):
    import comfy.utils
    from univid_pack.nodes.host.pulls import plot
    from univid_pack.univid.guidance import Pulls

    seen, before = [], comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview=None, **more: seen.append(preview))
    try:
        picture, values = plot([Pulls(0.5, 0.25, -0.1), Pulls(0.4, 0.2, 0.3)])
        assert values == [0.5, 0.25, -0.1, 0.4, 0.2, 0.3]
        ((kind, shown, size),) = seen
        assert kind == "JPEG" and isinstance(shown, Image.Image) and size == max(shown.size)
        assert (shown.height, shown.width) == picture.shape[1:3]
        assert plot([None, None])[1] == [] and len(seen) == 1
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
