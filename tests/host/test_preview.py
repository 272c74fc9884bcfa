"""What the node shows while it samples."""

import io
import struct

import numpy as np
import pytest
import torch
from host_tests.random_model import write
from PIL import Image, ImageChops, ImageOps, ImageSequence

FRAMES = 24


@pytest.fixture
def previews(pack, monkeypatch):
    """Previews on, as people set them in the interface."""
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    return args


@pytest.fixture(scope="module")
def built_in(pack):
    """The built-in MODEL, latents `[2 4 h w]` of a picture and its mirror image, and both as `[2 3 h w]`."""
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid.checkpoints import load, native
    from univid_pack.univid.video import read_image

    path = native.built_in_path()
    sample = torch.nn.functional.interpolate(read_image(path.with_name("sample.png")), (64, 64))
    images = torch.cat([sample, sample.flip(-1)])
    latents = load(dtype=torch.float32, parts=["vae"]).vae.encode(images.transpose(0, 1)[None])
    return load_model(path), latents[0].transpose(0, 1), images


def sent(preview) -> bytes:
    """The file that the host makes of a preview, as `send_image` of its server does it."""
    kind, picture, size = preview
    file = io.BytesIO()
    picture = picture if size is None else ImageOps.contain(picture, (size, size))
    picture.save(file, format=kind, quality=95, compress_level=1)
    return file.getvalue()


def frames_of(file: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(file)) as clip:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]


def check(frames, images):
    """The frames are these pictures, in this order, and blue is not red."""
    seen = np.stack([np.asarray(frame.resize((64, 64))) for frame in frames]).astype(float) / 127.5 - 1
    truth = images.permute(0, 2, 3, 1).numpy()
    error = np.abs(seen - truth).mean()
    assert error < 0.1
    assert min(np.abs(seen - other).mean() for other in (truth[..., ::-1], truth[::-1])) > 1.5 * error


def test_the_built_in_model_previews_frames_as_its_own_vae_decodes_them(previews, built_in):
    from univid_pack.nodes.host.preview import previewer_of

    model, latents, images = built_in
    check(frames_of(sent(previewer_of(model).decode_latent_to_preview_image("JPEG", latents))), images)


def test_samplers_of_the_host_show_the_built_in_model_s_frames_side_by_side(previews, built_in):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    model, latents, images = built_in
    for previews.preview_method in (LatentPreviewMethod.Auto, LatentPreviewMethod.TAESD):
        host = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        strip = host.decode_latent_to_preview_image("JPEG", latents)[1]
        assert strip.size == (128, 64)
        check([strip.crop((0, 0, 64, 64)), strip.crop((64, 0, 128, 64))], images)


def test_other_models_preview_as_the_host_draws_each_frame_and_off_is_off(previews, built_in, tmp_path):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod
    from univid_pack.nodes.host.model import load_model
    from univid_pack.nodes.host.preview import previewer_of

    model = load_model(write(tmp_path), "fp32")
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = frames_of(sent(previewer_of(model).decode_latent_to_preview_image("JPEG", latents)))
    host = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    assert len(shown) == 3
    for frame, latent in zip(shown, latents, strict=True):
        assert not ImageChops.difference(frame, host.decode_latent_to_preview(latent[None])).getbbox()
    previews.preview_method = LatentPreviewMethod.NoPreviews
    assert previewer_of(model) is previewer_of(built_in[0]) is None


class Brightness:
    """Draws of every latent its first value: a frame can be told from another."""

    def __init__(self, size=(512, 320)):
        self.size, self.calls = size, 0

    def decode_latent_to_preview(self, x0):
        self.calls += 1
        return Image.new("RGB", self.size, (int(x0[0, 0, 0, 0]),) * 3)


@pytest.fixture
def drawn(previews):
    """A previewer, what draws its frames, and latents of which each is as bright as its number."""
    from univid_pack.nodes.host.preview import ClipPreviewer

    draws = Brightness()
    return (
        ClipPreviewer(draws, 8.0),
        draws,
        torch.arange(FRAMES).float()[:, None, None, None].expand(-1, 4, 2, 2),
    )


@pytest.mark.parametrize("side, size", [(512, (256, 160)), (128, (128, 80))])
def test_a_long_clip_is_thinned_made_small_and_plays_as_long_as_it_is(drawn, monkeypatch, side, size):
    """side: what the user lets previews have."""
    import latent_preview

    monkeypatch.setattr(latent_preview, "MAX_PREVIEW_RESOLUTION", side)
    previewer, draws, latents = drawn
    file = sent(previewer.decode_latent_to_preview_image("JPEG", latents))
    values = [frame.getpixel((5, 5))[0] for frame in frames_of(file)]
    assert draws.calls == len(values) == 16 and values == sorted(set(values))
    assert values[0] == 0 and values[-1] == FRAMES - 1
    with Image.open(io.BytesIO(file)) as clip:
        assert clip.size == size and clip.info["loop"] == 0
        assert 16 * clip.info["duration"] == pytest.approx(1000 * FRAMES / 8)


def test_who_cannot_play_it_has_its_first_frame(drawn):
    """It is the PNG's own picture, and what is left where a preview is scaled or becomes another format."""
    previewer, _, latents = drawn
    kind, picture, size = previewer.decode_latent_to_preview_image("JPEG", latents + 50)
    plain = sent((kind, picture, size))
    assert struct.unpack(">I", plain[8:12])[0] == 13 and plain[12:16] == b"IHDR"  # a PNG begins so
    assert plain.index(b"acTL") < plain.index(b"IDAT") and plain.index(b"fcTL") < plain.index(b"IDAT")
    for still in (sent((kind, picture, 64)), sent(("JPEG", picture, None))):
        (frame,) = frames_of(still)
        assert abs(frame.getpixel((5, 5))[0] - 50) <= 1
    (one,) = frames_of(
        sent(type(previewer)(Brightness(), 8.0).decode_latent_to_preview_image("JPEG", latents[:1]))
    )
    assert one.size == (256, 160)


def test_previews_take_a_fifth_of_the_time_at_most(drawn, monkeypatch):
    from univid_pack.nodes.host import preview

    now = [100.0]
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    previewer, draws, latents = drawn
    draws.decode_latent_to_preview = lambda x0: now.__setitem__(0, now[0] + 0.125) or Image.new("RGB", (8, 8))
    shown = []
    for _ in range(100):  # steps of a second, previews of two
        now[0] += 1.0
        shown.append(previewer.decode_latent_to_preview_image("JPEG", latents) is not None)
    assert shown[0] and sum(shown) == pytest.approx(100 / (4 * 2), abs=1)
    assert 2 * sum(shown) <= 0.2 * (now[0] - 100.0) + 2


def test_the_last_step_has_a_preview_because_it_stays(previews, built_in, monkeypatch):
    import comfy.utils
    from univid_pack.nodes.host import preview, sampling

    shown, (model, latents, images) = [], built_in
    monkeypatch.setattr(preview.time, "monotonic", iter(range(1000)).__next__)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *values, **_: shown.append(values))
    callback = sampling._callback(model, 3)
    for step in range(3):
        callback(step, latents, latents, 3)
    assert [values[:2] for values in shown if values[2]] == [(1, 3), (3, 3)]
    check(frames_of(sent(shown[-1][2])), images)


def test_previews_of_another_pack_stay_as_they_are(previews, built_in, monkeypatch):
    import latent_preview
    from univid_pack.nodes.host.preview import previewer_of

    class Other(latent_preview.LatentPreviewer):
        def decode_latent_to_preview_image(self, preview_format, x0):
            return None

    other = Other()
    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: other)
    assert previewer_of(built_in[0]) is other


def test_the_plot_of_the_pulls_and_its_numbers(pack):
    """Where it is shown is in test_shown.py."""
    from univid_pack.nodes.host.pulls import plot
    from univid_pack.univid.guidance import Pulls

    picture, values = plot([Pulls(0.5, 0.25, -0.1), None, Pulls(0.4, 0.2, 0.3)])
    assert values == [0.5, 0.25, -0.1, 0.4, 0.2, 0.3]
    assert picture.ndim == 3 and picture.dtype == "uint8" and picture.std() > 0
    empty, none = plot([None, None])
    assert none == [] and empty.shape == picture.shape
