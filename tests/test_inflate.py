"""Stable Diffusion 2.x inflated: against diffusers and transformers at reduced width and random weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import safetensors.torch
import torch
import transformers
from diffusers.loaders import single_file_utils
from safetensors import safe_open

from univid.checkpoints import describe, import_file, load
from univid.checkpoints.extension import NEW_TENSORS, rule_of
from univid.conditioning import Conditioning
from univid.files.weights import open_weights

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
CONTEXT, VISION_WIDTH = 128, 160


def randomize(module):
    """Every parameter random; norms stay near the identity so that activations keep their size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() < 2:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval()


def make_parts():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128, 128, 128),
        attention_head_dim=(1, 2, 2, 2),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=600,
            hidden_size=CONTEXT,
            intermediate_size=4 * CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="gelu",
            bos_token_id=1,
            eos_token_id=599,
        )
    )
    vision = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=4 * VISION_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            hidden_act="gelu",
            projection_dim=CONTEXT,
        )
    )
    return {"unet": unet, "vae": vae, "text_encoder": text, "vision": vision}


@pytest.fixture(scope="module")
def parts():
    return {name: randomize(module) for name, module in make_parts().items()}


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """Stable Diffusion 2.1 at reduced width, saved by its own libraries."""
    folder = tmp_path_factory.mktemp("sd") / "stable-diffusion"
    for name in ("unet", "vae", "text_encoder"):
        parts[name].save_pretrained(folder / name)
    diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    ).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def vision_file(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    parts["vision"].save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def inflated(folder, vision_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("inflated") / "univid.safetensors"
    import_file(folder, path, vision=vision_file)
    return path


@pytest.fixture(scope="module")
def single(inflated, tmp_path_factory):
    """The same model as one file in LDM's layout, with the odds and ends that such files carry."""
    tensors = {
        key: tensor
        for key, tensor in safetensors.torch.load_file(inflated).items()
        if key.startswith((VAE, TEXT)) or (key.startswith(UNET) and rule_of(key.removeprefix(UNET)) is None)
    }
    tensors |= {
        "betas": torch.zeros(3),
        "model_ema.decay": torch.zeros(1),
        TEXT + "logit_scale": torch.zeros(()),
    }
    path = tmp_path_factory.mktemp("single") / "v2-1.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path


@torch.no_grad()
def per_frame(unet, x, timesteps, text):
    """diffusers' 2-D U-Net on every frame by itself."""
    frames = [unet(x[:, :, i], timesteps, text).sample for i in range(x.shape[2])]
    return torch.stack(frames, dim=2)


@torch.no_grad()
def test_frames_are_stable_diffusion_s(parts, inflated):
    model = load(inflated)
    torch.manual_seed(2)
    x, timesteps = torch.randn(2, 4, 3, 9, 16), torch.tensor([3, 801])  # odd heights on the way down
    text, image = torch.randn(2, 7, CONTEXT), torch.randn(2, 5, VISION_WIDTH)
    expected = per_frame(parts["unet"], x, timesteps, text)

    def difference(x, weights, text=text):
        cond = Conditioning(text, image, torch.tensor([weights] * 2))
        return (model.unet(x, timesteps, cond) - expected).abs().max()

    assert difference(x, (1.0, 0.0)) < 1e-4
    assert difference(x.roll(1, dims=2), (1.0, 0.0)) > 1e-2
    assert difference(x, (0.9, 0.0)) > 1e-3
    # The image stream starts as a copy of the text stream behind CLIP's own projection.
    vision = parts["vision"]
    tokens = vision.visual_projection(vision.vision_model.post_layernorm(image))
    expected = per_frame(parts["unet"], x, timesteps, tokens)
    assert difference(x, (0.0, 1.0)) < 1e-4
    assert difference(x, (1.0, 0.0)) > 1e-3


@torch.no_grad()
def test_vae_and_tokens_are_the_source_s(parts, inflated):
    model = load(inflated)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    mean, _ = model.vae.encode_moments(images)
    torch.testing.assert_close(mean, parts["vae"].encode(images).latent_dist.mean, rtol=0, atol=1e-4)
    decoded = parts["vae"].decode(mean).sample
    torch.testing.assert_close(
        model.vae.decode_images(mean * model.config.vae.scale), decoded, rtol=0, atol=1e-4
    )

    ids = torch.randint(2, 599, (2, 77))
    ids[:, -1] = 599
    tokens = parts["text_encoder"](ids).last_hidden_state
    torch.testing.assert_close(model.text_encoder.tokens(ids), tokens, rtol=0, atol=1e-4)
    assert (model.text_encoder.tokens(ids.flip(1)) - tokens).abs().max() > 1e-2

    pixels = torch.randn(2, 3, 28, 28)
    output = parts["vision"](pixels)
    torch.testing.assert_close(
        model.image_encoder.tokens(pixels), output.last_hidden_state, rtol=0, atol=1e-4
    )
    torch.testing.assert_close(model.image_encoder.pooled(pixels), output.image_embeds, rtol=0, atol=1e-4)


def test_the_start_of_the_new_parts(inflated):
    model = load(inflated)
    weights = model.unet.state_dict()
    new = [key for key in weights if rule_of(key)]
    assert {rule_of(key) for key in new} == set(NEW_TENSORS)
    for key in new:
        if ".temporal.proj_out." in key or "_temporal." in key or "pst_attn.to_out" in key:
            assert not weights[key].any(), key
        elif ".pst_attn." in key:
            assert torch.equal(weights[key], weights[key.replace("pst_attn", "attn1")])
        elif "_image." in key:
            assert torch.equal(weights[key], weights[key.replace("_image.", ".")])
        elif key.endswith(".weight"):
            assert weights[key].any(), key


def test_names_agree_with_diffusers_own_converter(parts, single):
    """LDM's names, read by diffusers, give back the very tensors that diffusers had saved."""
    ldm = safetensors.torch.load_file(single)
    back = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(ldm), dict(parts["unet"].config)),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(ldm), dict(parts["vae"].config)),
    }
    for part, converted in back.items():
        original = parts[part].state_dict()
        assert converted.keys() == original.keys()
        assert all(
            torch.equal(converted[key].reshape(original[key].shape), original[key]) for key in original
        )


def test_a_single_file_gives_the_same_tensors(inflated, single, vision_file, tmp_path, monkeypatch):
    expected = safetensors.torch.load_file(inflated)
    pickled = tmp_path / "v2-1.ckpt"
    lightning = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": lightning.__name__})
    lightning.ModelCheckpoint = ModelCheckpoint  # Stable Diffusion's .ckpt files name this class
    state = {"state_dict": safetensors.torch.load_file(single), "callbacks": {ModelCheckpoint: {"epoch": 1}}}
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", lightning.__name__):
            patch.setitem(sys.modules, name, lightning)
        torch.save(state, pickled)
    for source in (single, pickled):
        import_file(source, tmp_path / "out.safetensors", vision=vision_file, prediction="v")
        result = safetensors.torch.load_file(tmp_path / "out.safetensors")
        assert result.keys() == expected.keys()
        assert all(torch.equal(result[key], expected[key]) for key in expected)
        with safe_open(tmp_path / "out.safetensors", "pt") as ours, safe_open(inflated, "pt") as theirs:
            assert ours.metadata()["config"] == theirs.metadata()["config"]


def test_dtype_is_the_source_s_and_a_drawn_start_follows_the_seed(single, tmp_path):
    tensors = {key: tensor.half() for key, tensor in safetensors.torch.load_file(single).items()}
    safetensors.torch.save_file(tensors, tmp_path / "half.safetensors")
    import_file(tmp_path / "half.safetensors", tmp_path / "out.safetensors", prediction="eps", seed=5)
    reader = open_weights(tmp_path / "out.safetensors")
    assert {entry.dtype for entry in reader.entries.values()} == {torch.float16}
    assert "drawn from seed 5" in reader.metadata["image_projection"]
    assert load(tmp_path / "out.safetensors").image_encoder is None
    assert "drawn from seed 5" in describe(tmp_path / "out.safetensors")
    import_file(tmp_path / "half.safetensors", tmp_path / "other.safetensors", prediction="eps", seed=6)
    other = open_weights(tmp_path / "other.safetensors")
    changed = {key for key in other.entries if not torch.equal(other.read(key), reader.read(key))}
    assert changed == {
        key for key in other.entries if NEW_TENSORS.get(rule_of(key.removeprefix(UNET))) == "drawn"
    }


def test_older_names_and_bin_files(parts, folder, inflated, vision_file, tmp_path):
    """Folders from before transformers 5 and diffusers 0.17, as Stable Diffusion 2.1's own is."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    text = {f"text_model.{key}": tensor for key, tensor in parts["text_encoder"].state_dict().items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    (old / "text_encoder" / "model.safetensors").unlink()
    torch.save(text, old / "text_encoder" / "pytorch_model.bin")
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = parts["vae"].state_dict()
    for new, before in renamed.items():
        vae = {
            key.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): value
            for key, value in vae.items()
        }
    safetensors.torch.save_file(vae, old / "vae" / "diffusion_pytorch_model.safetensors")
    import_file(old, tmp_path / "out.safetensors", vision=vision_file)
    result, expected = (safetensors.torch.load_file(p) for p in (tmp_path / "out.safetensors", inflated))
    assert result.keys() == expected.keys() and all(
        torch.equal(result[key], expected[key]) for key in expected
    )


def test_vision_with_open_clip_names(folder, inflated, tmp_path):
    expected = safetensors.torch.load_file(inflated)
    prefix = "embedder.model.visual."
    clip = {
        key.replace(prefix, "visual."): tensor for key, tensor in expected.items() if key.startswith(prefix)
    }
    clip |= {
        "logit_scale": torch.zeros(()),
        "text_projection": torch.zeros(3, 3),
        "ln_final.bias": torch.zeros(3),
    }
    torch.save(clip, tmp_path / "open_clip_pytorch_model.bin")
    import_file(folder, tmp_path / "out.safetensors", vision=tmp_path / "open_clip_pytorch_model.bin")
    result = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert result.keys() == expected.keys() and all(
        torch.equal(result[key], expected[key]) for key in expected
    )


def test_sources_that_do_not_fit(folder, single, inflated, vision_file, tmp_path):
    out = tmp_path / "out" / "univid.safetensors"

    def refused(source, *words, **options):
        with pytest.raises(ValueError) as caught:
            import_file(source, out, **options)
        message = str(caught.value)
        assert "\n" not in message and message.endswith("."), message
        for word in words:
            assert word in message, message
        assert not out.parent.exists() or not list(out.parent.iterdir())

    def changed(change, name="changed.safetensors"):
        tensors = safetensors.torch.load_file(single)
        change(tensors)
        safetensors.torch.save_file(tensors, tmp_path / name)
        return tmp_path / name

    refused(single, "prediction 'v'", "eps")
    refused(single, "'noise'", prediction="noise")
    refused(inflated, "already", prediction="v")
    nan = {UNET + "out.0.bias": torch.full((64,), float("nan"))}
    refused(changed(lambda t: t.update(nan)), "out.0.bias", "nan", prediction="v")
    refused(tmp_path / "absent.ckpt", "cannot be read")
    refused(
        changed(lambda t: t.update({"cond_stage_model.transformer.a": torch.zeros(1)})), "1.x", prediction="v"
    )
    refused(changed(lambda t: t.update({"what.is": torch.zeros(1)})), "what.is", prediction="v")
    refused(changed(lambda t: t.update({UNET + "what": torch.zeros(1)})), UNET + "what", prediction="v")
    refused(changed(lambda t: t.pop(UNET + "out.0.bias")), "lacks", "out.0.bias", prediction="v")
    refused(
        changed(lambda t: t.pop(UNET + "input_blocks.0.0.weight")),
        "lacks 'input_blocks.0.0.weight'",
        prediction="v",
    )
    refused(changed(lambda t: t.update({UNET + "out.0.bias": torch.zeros(3)})), "shape (3,)", prediction="v")
    inpainting = {UNET + "input_blocks.0.0.weight": torch.zeros(64, 9, 3, 3)}
    refused(changed(lambda t: t.update(inpainting)), "9 channels", prediction="v")
    refused(single, "no CLIP vision tower", prediction="v", vision=single)
    narrow = {"visual_projection.weight": torch.zeros(64, VISION_WIDTH)}
    tensors = safetensors.torch.load_file(vision_file) | narrow
    safetensors.torch.save_file(tensors, tmp_path / "narrow.safetensors")
    refused(single, "projects to 64", prediction="v", vision=tmp_path / "narrow.safetensors")
    (tmp_path / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    refused(tmp_path / "evil.ckpt", "plain weights", prediction="v")
    assert not Path("hacked").exists()

    copy = tmp_path / "folder"
    shutil.copytree(folder, copy)
    (copy / "scheduler" / "scheduler_config.json").unlink()
    refused(copy, "prediction_type")
    config = json.loads((copy / "text_encoder" / "config.json").read_text())
    (copy / "text_encoder" / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    refused(copy, "1.x", prediction="v")
    shutil.rmtree(copy / "vae")
    refused(copy, "vae", prediction="v")


MEASURE = """
import dataclasses, math, resource, sys
import torch
from univid.checkpoints import import_file, stream
from univid.checkpoints.native import PARTS, meta_modules
from univid.checkpoints.extension import rule_of
from univid.presets import PAPER

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

unet = dataclasses.replace(PAPER.unet, model_channels=64)
text = dataclasses.replace(PAPER.text, layers=1, vocab_size=64)
vae = dataclasses.replace(PAPER.vae, channels=32)
config = dataclasses.replace(PAPER, unet=unet, text=text, vae=vae, vision=None)
entries = {
    PARTS[part].prefix + key: stream.Entry(torch.float32, tuple(tensor.shape))
    for part, module in meta_modules(config).items()
    for key, tensor in module.state_dict().items()
    if part != "unet" or rule_of(key) is None
}
stream.write(sys.argv[1], entries, lambda key: torch.zeros(entries[key].shape, dtype=torch.float32), {})
before = peak()
import_file(sys.argv[1], sys.argv[2], prediction="v")
print(sum(entry.num_bytes for entry in entries.values()), peak() - before)
"""


def test_memory_stays_far_below_the_file(tmp_path):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    try:
        command = [sys.executable, "-c", MEASURE, source, out]
        size, growth = map(int, subprocess.check_output(command, text=True).split())
        assert size > 140e6
        assert growth < size / 4
    finally:
        for path in (source, out):
            path.unlink(missing_ok=True)
