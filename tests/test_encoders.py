"""The CLIP towers against transformers' on the same weights, the tokenizer and the preprocessing."""

import logging

import pytest
import torch
from torchvision.transforms.functional import InterpolationMode, resize
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from univid.config import TextConfig, VisionConfig
from univid.encoders import CLIP_MEAN, CLIP_STD, ImageEncoder, TextEncoder, preprocess
from univid.presets import PAPER

TEXT = TextConfig(width=48, heads=3, layers=4, context_length=77, vocab_size=49408, embed_dim=40)
VISION = VisionConfig(
    image_size=56, patch_size=14, width=48, layers=3, head_width=16, mlp_ratio=4.0, embed_dim=40
)
PROMPTS = ["a red circle moves left on a black background", "", "一只猫在月光下奔跑", "word " * 500]


def build(cls, config, seed=0):
    """A tower built on the meta device that then takes random weights, as a checkpoint is loaded."""
    with torch.device("meta"):
        tower = cls(config).eval()
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, empty in tower.state_dict().items():
        value = torch.randn(empty.shape, generator=generator)
        if "ln_" in name:
            value = value.mul_(0.2).add_(float("weight" in name))
        elif value.dim() > 1:
            value.mul_(0.1 if "embedding" in name else value[0].numel() ** -0.5)
        state[name] = value
    tower.load_state_dict(state, assign=True)
    return tower


def transformers_names(state):
    """open_clip's weights under the names of transformers' encoder layers."""
    renames = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        if not name.startswith("transformer.resblocks."):
            continue
        layer, part = name.removeprefix("transformer.resblocks.").split(".", 1)
        prefix = f"encoder.layers.{layer}."
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{prefix}self_attn.{letter}_proj.{kind}"] = third
        else:
            module, kind = part.rsplit(".", 1)
            renamed[f"{prefix}{renames[module]}.{kind}"] = value
    return renamed


def load_reference(model, inner, renamed, projection):
    """Fill a transformers model built on the meta device without copying the weights."""
    state = {f"{inner}.{name}": value for name, value in renamed.items()} | projection
    model.load_state_dict(state, assign=True)
    embeddings = getattr(model, inner).embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    return model.eval()


def text_reference(tower):
    config, state = tower.config, tower.state_dict()
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                projection_dim=config.embed_dim,
                hidden_act="gelu",
            )
        )
    renamed = transformers_names(state) | {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    return load_reference(
        model, "text_model", renamed, {"text_projection.weight": state["text_projection"].T}
    )


def vision_reference(tower):
    config, state = tower.config, tower.state_dict()
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=int(config.mlp_ratio * config.width),
                num_hidden_layers=config.layers,
                num_attention_heads=config.width // config.head_width,
                image_size=config.image_size,
                patch_size=config.patch_size,
                projection_dim=config.embed_dim,
                hidden_act="gelu",
            )
        )
    renamed = transformers_names(state) | {
        "embeddings.class_embedding": state["class_embedding"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "embeddings.patch_embedding.weight": state["conv1.weight"],
        "pre_layrnorm.weight": state["ln_pre.weight"],
        "pre_layrnorm.bias": state["ln_pre.bias"],
        "post_layernorm.weight": state["ln_post.weight"],
        "post_layernorm.bias": state["ln_post.bias"],
    }
    return load_reference(model, "vision_model", renamed, {"visual_projection.weight": state["proj"].T})


def differences(tower, reference, inputs):
    """Relative differences of tokens and pooled embedding from transformers'."""
    if isinstance(tower, TextEncoder):
        output = reference(inputs, output_hidden_states=True)
        tokens = reference.text_model.final_layer_norm(output.hidden_states[-2])
        pooled = output.text_embeds
    else:
        output = reference(inputs)
        tokens, pooled = output.last_hidden_state, output.image_embeds
    pairs = (tower.tokens(inputs), tokens), (tower.pooled(inputs), pooled)
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return [((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs]


def pixels(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, config.image_size, config.image_size, generator=generator)


@torch.no_grad()
def test_text_tower_equals_transformers():
    tower = build(TextEncoder, TEXT)
    reference, ids = text_reference(tower), tower.tokenize(PROMPTS)
    assert max(differences(tower, reference, ids)) < 1e-5
    torch.testing.assert_close(tower(PROMPTS), tower.tokens(ids))

    last = tower.transformer.resblocks[-1].mlp.c_fc.bias
    last.data = -last  # the last layer serves the pooled embedding alone
    tokens, pooled = differences(tower, reference, ids)
    assert tokens < 1e-5 and pooled > 1e-3
    first = tower.transformer.resblocks[0].ln_1.bias
    first.data = -first
    assert min(differences(tower, reference, ids)) > 1e-3


@torch.no_grad()
def test_vision_tower_equals_transformers():
    tower = build(ImageEncoder, VISION)
    reference, inputs = vision_reference(tower), pixels(VISION)
    assert tower.tokens(inputs).shape == (2, 1 + 4 * 4, 48)
    assert max(differences(tower, reference, inputs)) < 1e-5

    tower.ln_post.bias.data = -tower.ln_post.bias  # behind the tokens
    tokens, pooled = differences(tower, reference, inputs)
    assert tokens < 1e-5 and pooled > 1e-3
    tower.class_embedding.data = -tower.class_embedding
    assert min(differences(tower, reference, inputs)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "vision"])
@torch.no_grad()
def test_full_size_equals_transformers(kind):
    if kind == "text":
        tower = build(TextEncoder, PAPER.text)
        reference, inputs = text_reference(tower), tower.tokenize(PROMPTS[:2])
        assert tower.tokens(inputs).shape == (2, 77, 1024)
    else:
        tower = build(ImageEncoder, PAPER.vision)
        reference, inputs = vision_reference(tower), pixels(PAPER.vision)[:1]
        assert tower.tokens(inputs).shape == (1, 257, 1280)
    assert max(differences(tower, reference, inputs)) < 1e-4


def test_towers_load_from_a_whole_clip():
    tower = build(TextEncoder, TEXT)
    state = {"model." + name: value for name, value in tower.state_dict().items()}
    holder = torch.nn.ModuleDict({"model": build(TextEncoder, TEXT, seed=1)})
    holder.load_state_dict(state | {"model.logit_scale": torch.tensor(4.6)})
    assert torch.equal(holder["model"](["a cat"]), tower(["a cat"]))
    with pytest.raises(RuntimeError, match="Unexpected key.*stray"):
        holder.load_state_dict(state | {"model.stray": torch.tensor(0.0)})
    assert not list(tower.buffers())


def test_towers_learn():
    """Gradients reach the first layer through both outputs."""
    text, vision = build(TextEncoder, TEXT), build(ImageEncoder, VISION)
    ids = text.tokenize(PROMPTS)
    for output, parameter in (
        (text.pooled(ids), text.positional_embedding),
        (text.tokens(ids), text.positional_embedding),
        (vision.pooled(pixels(VISION)), vision.class_embedding),
    ):
        (gradient,) = torch.autograd.grad(output.square().sum(), parameter)
        assert gradient.abs().max() > 0


def test_tokenizer(caplog):
    tower = build(TextEncoder, TEXT)
    ids = tower.tokenize(["A photo of a  cat", "", "一只猫"])
    start, end = 49406, 49407
    assert ids[0, :8].tolist() == [start, 320, 1125, 539, 320, 2368, end, 0]  # CLIP's published ids
    assert ids[1, :3].tolist() == [start, end, 0]
    assert (ids[2] > 0).sum() > 4
    assert not caplog.records

    with caplog.at_level(logging.WARNING):
        ids = tower.tokenize(["word " * 500])
    assert ids.shape == (1, 77) and ids[0, -1] == end
    assert "502 tokens cut to 77" in caplog.text


@pytest.mark.parametrize("height, width", [(60, 200), (17, 9), (1, 1), (30, 10_000), (56, 56)])
def test_preprocess_equals_torchvision(height, width):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    squashed = resize((images + 1) / 2, [56, 56], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    ours = preprocess(images, 56)
    assert ours.shape == (2, 3, 56, 56)
    torch.testing.assert_close(ours, (squashed - mean) / std, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(build(ImageEncoder, VISION)(images)).all()


def test_preprocess_keeps_the_range():
    """Bicubic overshoots at a hard edge; a white picture comes out as CLIP's white."""
    edge = torch.ones(1, 3, 8, 8)
    edge[..., :4] = -1
    white = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    black = -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    ours = preprocess(edge, 56)
    torch.testing.assert_close(ours.amax((0, 2, 3)), white)
    torch.testing.assert_close(ours.amin((0, 2, 3)), black)
