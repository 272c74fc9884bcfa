"""Weights, empty latents, decoding and the sweep inside the host, on small models with random weights."""

import dataclasses
import math

import pytest
import torch


@pytest.fixture(scope="module")
def model(pack, tmp_path_factory):
    """A small U-Net with random weights, out of a checkpoint that holds nothing else."""
    from univid_pack.nodes.host.model import load_model
    from univid_pack.univid import presets
    from univid_pack.univid.checkpoints.native import meta_modules, save
    from univid_pack.univid.model import UniVid

    tiny = presets.PRESETS["tiny"]
    stream = dataclasses.replace(tiny.unet.image_stream, width=32)
    unet = dataclasses.replace(
        tiny.unet, model_channels=16, head_channels=16, norm_groups=8, context_dim=32, image_stream=stream
    )
    small = dataclasses.replace(tiny, unet=unet, vae=None, text=None, vision=None)
    profile = dataclasses.replace(presets.PROFILES["tiny"], frames=3, height=32, width=48, fps=6.0)
    parts = meta_modules(small)
    generator = torch.Generator().manual_seed(0)
    for parameter in parts["unet"].to_empty(device="cpu").parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save(path, UniVid(small, profile, info={"source": "random weights of a test"}, **parts))
    return load_model(path, "fp32")


@pytest.fixture(scope="module")
def vae(pack):
    """An object of the host, small and with random weights."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    config = {"params": {"ddconfig": ddconfig, "embed_dim": 4}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {
            k: torch.randn_like(v) * 0.1 for k, v in AutoencoderKL(**config["params"]).state_dict().items()
        }
    return comfy.sd.VAE(sd=state, config=config, dtype=torch.float32)


@pytest.fixture(scope="module")
def conditioning(model):
    """Makes a conditioning with random tokens, with or without a picture."""
    unet, generator = model.model.univid_config.unet, torch.Generator().manual_seed(0)

    def make(picture=True):
        image = torch.randn(1, 5, unet.image_stream.width, generator=generator)
        extras = {"univid_image": image if picture else image * 0, "univid_has_image": picture}
        return [[torch.randn(1, 7, unet.context_dim, generator=generator), extras]]

    return make


def run(node, **inputs):
    """Execute a node as the host does, through the locked clone of its class."""
    cls = node.PREPARE_CLASS_CLONE(None)
    return node.execute.__func__(cls, **inputs)


def weigh(pack, conditioning, text_weight=1.0, image_weight=1.0, **inputs):
    from univid_pack.nodes.weights import UniVidModalityWeights

    inputs = {
        "conditioning": conditioning, "text_weight": text_weight, "image_weight": image_weight, **inputs
    }  # fmt: skip
    listed = {"text_list", "image_list"}
    return run(UniVidModalityWeights, **{k: v if k in listed else [v] for k, v in inputs.items()})


@pytest.mark.parametrize("name", ["weights.UniVidModalityWeights", "latents.UniVidEmptyLatent",
                                  "decode.UniVidDecodeVideo", "sweep.UniVidModalitySweep"])  # fmt: skip
def test_every_schema_is_complete(pack, name):
    import importlib

    module, cls = name.split(".")
    node = getattr(importlib.import_module(f"univid_pack.nodes.{module}"), cls)
    schema = node.GET_SCHEMA()
    assert schema.node_id == cls and schema.category == "UniVid"
    assert schema.description and schema.search_aliases
    assert all(part.tooltip for part in [*schema.inputs, *schema.outputs])
    widgets = [i for i in schema.inputs if hasattr(i, "default") and not i.advanced]
    assert len(widgets) <= 9


def test_weights_are_set_and_nothing_else_changes(pack, conditioning):
    before = conditioning()
    out, preview = weigh(pack, before, 0.3, 1.7).result
    assert out[0][1]["univid_weights"].equal(torch.tensor([[[0.3, 1.7]]]))
    assert out[0][0] is before[0][0] and out[0][1]["univid_image"] is before[0][1]["univid_image"]
    assert "univid_weights" not in before[0][1]
    assert preview.shape == (1, 256, 512, 3) and 0 <= preview.min() and preview.max() <= 1


def test_curves_over_frames_and_steps(pack, conditioning):
    inputs = {"frames": 5, "text_over_frames": "1..0 ease_in_out", "image_over_steps": "0..1"}
    weights = weigh(pack, conditioning(), 0.5, **inputs)[0][0][1]["univid_weights"]
    assert weights.shape == (5, 64, 2)
    assert weights[:, 0, 0].tolist() == [0.5, 0.421875, 0.25, 0.078125, 0]
    torch.testing.assert_close(weights[0, :, 1], torch.linspace(0, 1, 64))


@pytest.mark.parametrize("listed", [[1.0, 0.5, 0.0], [[1.0, 0.5, 0.0]]], ids=["FLOAT list", "FLOATS"])
def test_a_list_of_floats_is_one_value_a_frame(pack, conditioning, listed):
    weights = weigh(pack, conditioning(), text_list=listed)[0][0][1]["univid_weights"]
    assert weights.tolist() == [[[1, 1]], [[0.5, 1]], [[0, 1]]]


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"text_weight": math.nan}, "text_weight must be a finite number"),
        ({"image_weight": -1.0}, "image_weight must be a finite number of at least 0, got -1"),
        ({"text_over_frames": "1..0"}, "set frames"),
        ({"text_over_frames": "1, 0", "frames": 3}, "one a frame .3., got 2"),
        ({"image_over_steps": "nan..0"}, "image_over_steps: .* got nan"),
        ({"text_list": [1.0, math.nan]}, "text_list: .* got nan"),
        ({"text_list": [1.0, 0.0], "text_over_frames": "1..0"}, "both say"),
    ],
)
def test_bad_weights_are_refused_in_one_sentence(pack, conditioning, inputs, words):
    with pytest.raises(ValueError, match=words) as caught:
        weigh(pack, conditioning(), **inputs)
    assert "\n" not in str(caught.value)


def test_an_image_weight_needs_a_picture(pack, conditioning):
    plain = [[torch.zeros(1, 7, 64), {}]]  # of CLIPTextEncode
    for without in (conditioning(picture=False), plain):
        with pytest.raises(ValueError, match="image_weight is 1, but there is no picture"):
            weigh(pack, without)
        assert weigh(pack, without, 0.5, 0.0)[0][0][1]["univid_weights"].tolist() == [[[0.5, 0]]]
        weigh(pack, without, image_over_steps="0")


def test_several_values_for_one_number_are_refused(pack, conditioning):
    from univid_pack.nodes.weights import UniVidModalityWeights

    with pytest.raises(ValueError, match="text_weight must be one value, got a list of 2"):
        run(UniVidModalityWeights, conditioning=[conditioning()], text_weight=[1.0, 0.5], image_weight=[1.0])


def empty(**inputs):
    from univid_pack.nodes.latents import UniVidEmptyLatent

    return run(UniVidEmptyLatent, **{"width": 0, "height": 0, "frames": 0, **inputs}).result


def test_the_empty_latent_has_the_models_training_size(pack, model):
    latent, *rest = empty(model=model)
    profile = model.model.univid_profile
    assert rest == [profile.width, profile.height, profile.frames, profile.fps]
    assert latent["samples"].shape == (profile.frames, 4, profile.height // 8, profile.width // 8)
    assert not latent["samples"].any()


@pytest.mark.parametrize("frames", [1, 2, 17, 200])
def test_the_empty_latent_has_any_size(pack, frames):
    latent, *rest = empty(width=24, height=8, frames=frames)
    assert latent["samples"].shape == (frames, 4, 1, 3) and rest == [24, 8, frames, 8.0]


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"width": 60}, "width must be a multiple of 8, got 60; try 64"),
        ({"height": -8}, "height must be at least 8, .* got -8"),
        ({"frames": 0}, "frames must be at least 1, or 0 .* got 0 without a model"),
    ],
)
def test_a_bad_size_is_refused(pack, inputs, words):
    with pytest.raises(ValueError, match=words):
        empty(**{"width": 64, "height": 64, "frames": 4, **inputs})


def decode(vae, samples, fps=8.0, chunk=8):
    from univid_pack.nodes.decode import UniVidDecodeVideo

    return run(UniVidDecodeVideo, samples={"samples": samples}, vae=vae, fps=fps, chunk=chunk).result


def latents(frames, channels=4):
    return torch.randn(frames, channels, 3, 4, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames, chunk", [(1, 8), (5, 2), (5, 8), (6, 1)])
def test_decoding_in_chunks_gives_what_the_vae_gives(pack, vae, frames, chunk):
    images, video, fps = decode(vae, latents(frames), chunk=chunk)
    torch.testing.assert_close(images, vae.decode(latents(frames)), rtol=0, atol=1e-5)
    assert images.shape == (frames, 24, 32, 3) and fps == 8.0
    assert video.get_dimensions() == (32, 24)


def test_the_video_has_its_frames_and_rate(pack, vae, tmp_path):
    import av

    video = decode(vae, latents(5), fps=29.97)[1]
    video.save_to(str(tmp_path / "clip.mp4"))
    with av.open(str(tmp_path / "clip.mp4")) as file:
        stream = file.streams.video[0]
        assert len(list(file.decode(stream))) == 5
        assert float(stream.average_rate) == pytest.approx(29.97, abs=0.01)


def test_decoding_shows_progress_and_can_be_interrupted(pack, vae):
    import comfy.model_management as management
    import comfy.utils

    seen = []

    def hook(value, total, preview, node_id=None):
        seen.append((value, total))
        if value == 2:
            management.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        with pytest.raises(management.InterruptProcessingException):
            decode(vae, latents(9), chunk=2)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        management.interrupt_current_processing(False)
    assert seen == [(2, 9)]
    assert decode(vae, latents(3))[0].isfinite().all()


@pytest.mark.parametrize(
    "samples, words",
    [
        (torch.zeros(1, 16, 3, 4, 4), r"expected latents \[frames channels height width\], got \[1, 16, 3"),
        (torch.zeros(2, 16, 4, 4), "of 4 channels, got 16"),
        (torch.zeros(0, 4, 4, 4), "at least 1 frame"),
    ],
)
def test_latents_of_other_models_are_refused(pack, vae, samples, words):
    with pytest.raises(ValueError, match=words):
        decode(vae, samples)


def test_what_is_not_finite_is_named(pack, vae):
    broken = latents(3)
    broken[1, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"latents hold nan .*\(float32\).* fp32"):
        decode(vae, broken)
    with pytest.raises(FloatingPointError, match="the VAE gave nan .* frames 0 to 1 in float32"):
        decode(vae, latents(3) * 1e38, chunk=2)


@pytest.mark.parametrize("fps", [0.0, math.nan, -8.0])
def test_a_bad_frame_rate_is_refused(pack, vae, fps):
    with pytest.raises(ValueError, match="fps must be from 0.01 to 1000"):
        decode(vae, latents(1), fps=fps)


def sweep(model, vae, positive, **inputs):
    from univid_pack.nodes.sweep import UniVidModalitySweep

    inputs = {
        "latent": {"samples": torch.zeros(6, 4, 4, 4)}, "seed": 0, "steps": 2, "sampler_name": "euler",
        "scheduler": "normal", "text_weights": "0, 1", "image_weights": "0, 0.5, 1", "guidance_scale": 2.0,
        "negative": positive, **inputs,
    }  # fmt: skip
    return run(UniVidModalitySweep, model=model, vae=vae, positive=positive, **inputs).result


def test_a_sweep_is_one_picture_with_one_progress_bar(pack, model, vae, conditioning):
    import comfy.utils

    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append(value / total))
    try:
        (sheet,) = sweep(model, vae, conditioning(), text_weights="0 1", image_weights="1")
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and len(sheet.unique()) > 50
    assert seen == sorted(seen) and seen[-1] == 1 and len(seen) >= 4


def test_a_sweep_has_a_column_for_each_image_weight(pack, model, vae, conditioning):
    positive = conditioning()
    narrow, wide = (
        sweep(model, vae, positive, text_weights="1", image_weights=w)[0].shape for w in ("1", "0, 1")
    )
    assert wide[2] > 1.5 * narrow[2] and wide[1] < 1.5 * narrow[1]  # no row more, though words grow
    sweep(model, vae, conditioning(picture=False), text_weights="0", image_weights="0")  # unconditional


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"text_weights": " "}, "text_weights must be a list of numbers"),
        ({"text_weights": "0..1"}, "text_weights must be a list of numbers"),
        ({"image_weights": "0, nan"}, "image_weights: .* got nan"),
        ({"image_weights": "0, -1"}, "image_weights: .* got -1"),
        ({"text_weights": "a, b"}, "text_weights: .* no curve"),
    ],
)
def test_a_bad_sweep_is_refused(pack, model, vae, conditioning, inputs, words):
    with pytest.raises(ValueError, match=words):
        sweep(model, vae, conditioning(), **inputs)
    with pytest.raises(ValueError, match="image_weights is 1, but there is no picture"):
        sweep(model, vae, conditioning(picture=False))
