"""The host's CLIP, CLIP_VISION and VAE against the library's, and what Encode Dual Prompt makes of them."""

import dataclasses
import os

import pytest
import torch
from einops import rearrange

PROMPTS = {
    "short": "a red circle moves left on a black background",
    "empty": "",
    "chinese": "一个红色的圆圈",
    "accents and capitals": "Crème  brûlée and A CAFÉ, naïve!",
    "emoji": "🐈 runs",
    "nearly the whole context": "circle " * 75,
}
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.inference_mode():  # as the host runs its nodes
        yield


@pytest.fixture(scope="session")
def univid_library(pack):
    from univid_pack.univid.checkpoints import load

    return load(dtype=torch.float32)


@pytest.fixture(scope="session")
def loaded(pack):
    """MODEL, CLIP, CLIP_VISION and VAE of the built-in checkpoint, from the node."""
    from univid_pack.nodes.load import UniVidLoad

    return UniVidLoad.execute("built-in").result


@pytest.fixture(scope="session")
def picture():
    return torch.rand(1, 40, 52, 3, generator=torch.Generator().manual_seed(0))


def encode(loaded, prompt, negative="", image=None, frames=0):
    from univid_pack.nodes.encode import UniVidEncodeDualPrompt

    _, clip, vision, _ = loaded
    return UniVidEncodeDualPrompt.execute(clip, prompt, negative, vision, image, frames).result


def tokens_of(conditioning):
    assert len(conditioning) == 1
    return conditioning[0][0]


def as_video(images):
    return 2 * rearrange(images, "b h w c -> b c h w") - 1


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_text_tokens_are_the_librarys(loaded, univid_library, prompt):
    positive, negative = encode(loaded, prompt, prompt)
    expected = univid_library.text_encoder([prompt])
    for conditioning in (positive, negative):
        torch.testing.assert_close(tokens_of(conditioning), expected, atol=1e-5, rtol=0)


def test_prompts_of_another_meaning_have_other_tokens(loaded):
    red, blue = (tokens_of(encode(loaded, f"a {colour} circle")[0]) for colour in ("red", "blue"))
    assert (red - blue).abs().max() > 0.1


def test_weights_in_parentheses_count(loaded):
    plain, strong = (tokens_of(encode(loaded, text)[0]) for text in ("a red circle", "a (red:1.5) circle"))
    weighted = (plain - strong).abs().amax(-1)[0]
    assert weighted[2] > 1e-3  # start, a, red
    assert weighted.count_nonzero() == 1


def test_an_embedding_takes_its_place(loaded, tmp_path, monkeypatch):
    import safetensors.torch

    tokenizer = loaded[1].tokenizer.clip_h
    table = loaded[1].cond_stage_model.clip_h.transformer.get_input_embeddings().weight
    red = tokenizer.tokenizer("red")["input_ids"][1]
    safetensors.torch.save_file(
        {"clip_h": table[red : red + 1].float().clone()}, tmp_path / "scarlet.safetensors"
    )
    monkeypatch.setattr(tokenizer, "embedding_directory", [str(tmp_path)])
    by_name, by_word = (encode(loaded, f"a {word} circle")[0] for word in ("embedding:scarlet", "red"))
    torch.testing.assert_close(tokens_of(by_name), tokens_of(by_word), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(40, 52), (64, 64), (1, 33), (300, 7)])
def test_image_tokens_are_the_librarys(loaded, univid_library, size):
    images = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(1))
    positive, negative = encode(loaded, "", image=images)
    tokens = positive[0][1]["univid_image"]
    assert tokens.shape == (2, 65, 96) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, univid_library.image_encoder(as_video(images)), atol=1e-5, rtol=0)
    assert positive[0][1]["univid_has_image"] and not negative[0][1]["univid_has_image"]
    assert torch.equal(negative[0][1]["univid_image"], torch.zeros_like(tokens))
    assert negative[0][1]["univid_weights"].tolist() == [[[1.0, 0.0]]]
    assert "univid_weights" not in positive[0][1]


def test_the_node_keeps_pictures_in_order_over_chunks(loaded, univid_library):
    images = torch.rand(37, 8, 8, 3, generator=torch.Generator().manual_seed(2))
    tokens = encode(loaded, "", image=images, frames=37)[0][0][1]["univid_image"]
    torch.testing.assert_close(tokens, univid_library.image_encoder(as_video(images)), atol=1e-5, rtol=0)


def test_transparent_becomes_black_and_grey_is_a_colour(loaded, picture):
    def tokens(image):
        return encode(loaded, "", image=image)[0][0][1]["univid_image"]

    half = (torch.arange(52) < 26).float().expand(1, 40, 52)[..., None]
    assert torch.equal(tokens(torch.cat([picture, half], -1)), tokens(picture * half))
    grey = picture[..., :1]
    assert torch.equal(tokens(grey), tokens(grey.expand(-1, -1, -1, 3)))


def test_without_an_image(loaded):
    from univid_pack.nodes.encode import UniVidEncodeDualPrompt

    for conditioning in encode(loaded, "a red circle"):
        assert torch.equal(conditioning[0][1]["univid_image"], torch.zeros(1, 65, 96))
        assert conditioning[0][1]["univid_has_image"] is False
    for conditioning in UniVidEncodeDualPrompt.execute(loaded[1], "a red circle", "").result:
        assert "univid_image" not in conditioning[0][1]


def test_prompt_travel(loaded):
    red, blue = (tokens_of(encode(loaded, f"a {colour} circle")[0]) for colour in ("red", "blue"))
    positive, negative = encode(loaded, "0: a red circle / 4: a blue circle", frames=6)
    expected = torch.cat([torch.lerp(red, blue, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)])
    assert torch.equal(tokens_of(positive), expected)
    assert tokens_of(negative).shape == red.shape
    same = encode(loaded, "0: a red circle / 4: a red circle", frames=0)[0]  # nothing travels
    assert torch.equal(tokens_of(same), red)
    back = encode(loaded, "0: a red circle / 2: a blue circle / 4: a red circle", frames=5)[0]
    assert torch.equal(tokens_of(back)[4:], red)


def test_vae_is_the_librarys(loaded, univid_library, picture):
    vae = loaded[3]
    images = picture[:, :, :48].repeat(3, 1, 1, 1)
    images[1:] *= torch.rand(2, 40, 48, 3, generator=torch.Generator().manual_seed(3))
    latents = vae.encode(images)
    video = rearrange(as_video(images), "(b t) c h w -> b c t h w", b=1)
    expected = rearrange(univid_library.vae.encode(video), "b c t h w -> (b t) c h w")
    assert latents.shape == (3, 4, 5, 6)
    torch.testing.assert_close(0.18215 * latents, expected, atol=1e-4, rtol=0)
    decoded = univid_library.vae.decode(rearrange(0.18215 * latents, "(b t) c h w -> b c t h w", b=1))
    frames = ((rearrange(decoded, "b c t h w -> (b t) h w c") + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(vae.decode(latents), frames, atol=1e-4, rtol=0)


def saved(tmp_path, **changes):
    """A checkpoint with random parts where the config changes, and the library's model of it."""
    from univid_pack.univid.checkpoints import load, native

    model = load()
    config = dataclasses.replace(model.config, **changes)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: part
        for name, part in native.meta_modules(config).items()
        if native.PARTS[name].field in changes
    }
    for module in drawn.values():
        module.to_empty(device="cpu")
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.data.normal_(std=fan_in**-0.5, generator=generator)
    absent = {name: None for name, part in native.PARTS.items() if getattr(config, part.field) is None}
    path = tmp_path / "drawn.safetensors"
    native.save(path, dataclasses.replace(model, config=config, **absent, **drawn), dtype=torch.float16)
    return path, load(path, dtype=torch.float32)


def encoders(name):
    from univid_pack.univid.presets import PAPER, TINY

    if name == "ViT-H-14":  # with fewer layers, for the time it takes
        text, vision = dataclasses.replace(PAPER.text, layers=3), dataclasses.replace(PAPER.vision, layers=2)
        return {"text": text, "vision": vision, "vae": None}
    return {
        "text": dataclasses.replace(TINY.text, width=128, heads=4, layers=2, embed_dim=128),
        "vision": dataclasses.replace(
            TINY.vision, width=64, layers=1, head_width=16, mlp_ratio=3.0, embed_dim=128
        ),
        "vae": dataclasses.replace(TINY.vae, channels=32, channel_mult=(1, 2, 2, 1), norm_groups=32),
    }


@pytest.mark.parametrize("name", ["ViT-H-14", "small"])
def test_encoders_of_other_widths(pack, tmp_path, picture, name):
    from univid_pack.nodes.host.encoders import load_encoders
    from univid_pack.nodes.host.prompts import encode_dual

    path, model = saved(tmp_path, **encoders(name))
    clip, vision, vae = load_encoders(path)
    positive, negative = encode_dual(clip, vision, "a red circle", "", picture, 0)
    torch.testing.assert_close(positive[0][0], model.text_encoder(["a red circle"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(negative[0][0], model.text_encoder([""]), atol=1e-4, rtol=0)
    expected = model.image_encoder(as_video(picture))
    assert expected.shape == ((1, 257, 1280) if name == "ViT-H-14" else (1, 65, 64))
    torch.testing.assert_close(positive[0][1]["univid_image"], expected, atol=1e-4, rtol=0)
    assert encode_dual(clip, vision, "", "", None, 0)[0][0][1]["univid_image"].shape == expected.shape
    if model.vae is None:
        return
    images = picture[:, :, :48]
    latents = vae.encode(images)
    expected = model.vae.encode(rearrange(as_video(images), "b c h w -> b c 1 h w"))[:, :, 0]
    torch.testing.assert_close(0.18215 * latents, expected, atol=1e-4, rtol=0)
    decoded = model.vae.decode(expected[:, :, None])[:, :, 0]
    frames = ((rearrange(decoded, "b c h w -> b h w c") + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(vae.decode(latents), frames, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["built-in", "small"])
def test_clip_and_vae_can_be_made_again(pack, tmp_path, picture, name):
    """As the host does it where a node asks for another device, or for weights that stay in memory."""
    from univid_pack.nodes.host.encoders import load_encoders
    from univid_pack.univid.checkpoints import native

    path = native.built_in_path() if name == "built-in" else saved(tmp_path, **encoders(name))[0]
    clip, _, vae = load_encoders(path)
    for part in (clip, vae):
        function, arguments = part.patcher.cached_patcher_init
        again = function(*arguments, disable_dynamic=True)
        assert type(again) is type(part.patcher) and again.model is not part.patcher.model
        expected = part.patcher.model.state_dict()
        assert again.model.state_dict().keys() == expected.keys()
        assert all(torch.equal(t, expected[k]) for k, t in again.model.state_dict().items())
    if not hasattr(vae.patcher, "deepclone_multigpu"):  # hosts before 0.33
        return
    before = vae.decode(vae.encode(picture))
    vae.patcher = vae.patcher.deepclone_multigpu(vae.patcher.load_device)
    vae.first_stage_model = vae.patcher.model
    assert torch.equal(vae.decode(vae.encode(picture)), before)


def test_stable_diffusion_2s_own_file(pack, tmp_path, picture):
    import safetensors.torch
    from comfy_execution.graph_utils import ExecutionBlocker
    from univid_pack.nodes.host.encoders import load_encoders
    from univid_pack.univid.checkpoints import native
    from univid_pack.univid.checkpoints.extension import rule_of
    from univid_pack.univid.presets import PAPER

    path, model = saved(
        tmp_path,
        unet=dataclasses.replace(PAPER.unet, model_channels=64, channel_mult=(1, 1, 1, 1), context_dim=64),
        vae=dataclasses.replace(PAPER.vae, channels=32, channel_mult=(1, 1, 1, 2)),
        text=dataclasses.replace(PAPER.text, width=64, heads=1, layers=3, embed_dim=64),
        vision=None,
    )
    unet = native.PARTS["unet"].prefix
    tensors = safetensors.torch.load_file(path)
    theirs = {
        key: tensor
        for key, tensor in tensors.items()
        if not key.startswith(unet) or rule_of(key.removeprefix(unet)) is None
    }
    safetensors.torch.save_file(theirs, tmp_path / "v2-1.safetensors")
    clip, vision, vae = load_encoders(tmp_path / "v2-1.safetensors")
    tokens = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))[0][0]
    torch.testing.assert_close(tokens, model.text_encoder(["a red circle"]), atol=1e-4, rtol=0)
    images = picture[:, :, :48]
    expected = model.vae.encode(rearrange(as_video(images), "b c h w -> b c 1 h w"))[:, :, 0]
    torch.testing.assert_close(0.18215 * vae.encode(images), expected, atol=1e-4, rtol=0)
    assert isinstance(vision, ExecutionBlocker)


def test_a_part_that_is_not_there_names_a_loader(pack, tmp_path):
    from comfy_execution.graph_utils import ExecutionBlocker
    from univid_pack.nodes.host.encoders import load_encoders

    path, _ = saved(tmp_path, text=None, vision=None, vae=None)
    for output, loader in zip(
        load_encoders(path), ("CLIPLoader", "CLIPVisionLoader", "VAELoader"), strict=True
    ):
        assert isinstance(output, ExecutionBlocker)
        assert path.name in output.message and loader in output.message


def test_wrong_input_is_refused_with_its_numbers(loaded, tmp_path, picture):
    from univid_pack.nodes.encode import UniVidEncodeDualPrompt
    from univid_pack.nodes.host.encoders import load_encoders
    from univid_pack.univid.presets import TINY

    _, clip, vision, _ = loaded
    wide = load_encoders(
        saved(tmp_path, text=dataclasses.replace(TINY.text, width=128, embed_dim=128), vision=None, vae=None)[
            0
        ]
    )[0]

    def refused(message, clip=clip, vision=vision, prompt="", image=None, frames=0):
        with pytest.raises(ValueError, match=message):
            UniVidEncodeDualPrompt.execute(clip, prompt, "", vision, image, frames)

    refused("width 128, but .* width 64", clip=wide)
    refused("needs a CLIP_VISION", vision=None, image=picture)
    refused("each of 12 frames, got 3", image=picture.repeat(3, 1, 1, 1), frames=12)
    refused("travel to frame 12 needs .* got 0", prompt="0: a / 12: b")
    refused("more than one prompt at frame 3", prompt="3: a / 3: b", frames=12)
    refused("channels, got 2", image=picture[..., :2])


def test_missing_and_changed_files(pack, tmp_path):
    import folder_paths
    from univid_pack.nodes.load import UniVidLoad

    message = UniVidLoad.validate_inputs("gone.safetensors")
    assert "'gone.safetensors'" in message and folder_paths.get_folder_paths("univid")[0] in message
    with pytest.raises(ValueError, match="gone.safetensors"):
        UniVidLoad.execute("gone.safetensors")
    assert UniVidLoad.validate_inputs("built-in") is True
    assert UniVidLoad.fingerprint_inputs("gone.safetensors") == ()

    folder_paths.add_model_folder_path("univid", str(tmp_path))
    (tmp_path / "new.safetensors").write_bytes(b"12")
    (tmp_path / "old.ckpt").write_bytes(b"12")
    (tmp_path / "other.gguf").write_bytes(b"12")
    options = UniVidLoad.define_schema().inputs[0].options
    assert options[0] == "built-in" and "other.gguf" not in options
    assert {"new.safetensors", "old.ckpt"} <= set(options)
    before = UniVidLoad.fingerprint_inputs("new.safetensors", "auto")
    (tmp_path / "new.safetensors").write_bytes(b"123")
    larger = UniVidLoad.fingerprint_inputs("new.safetensors", "auto")
    os.utime(tmp_path / "new.safetensors", (0, 1))  # as long, and written at another time
    assert len({before, larger, UniVidLoad.fingerprint_inputs("new.safetensors", "auto")}) == 3
    with pytest.raises(ValueError, match="neither a .safetensors file"):
        UniVidLoad.execute("new.safetensors")
    with pytest.raises(ValueError, match="plain weights"):
        UniVidLoad.execute("old.ckpt")
