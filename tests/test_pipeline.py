"""Whole clips from tiny random models of every kind that the public relatives have."""

import dataclasses

import pytest
import torch
from asking import gathered
from reference import RELATIVE, randomize

from univid.config import ImageStreamConfig, NumberInput, ResamplerConfig
from univid.encoders import ImageEncoder, TextEncoder
from univid.guidance import Joint, Nested, Separate
from univid.model import UniVid
from univid.pipeline import Clip, Source, generate
from univid.presets import FAMILY, PROFILES, TINY
from univid.unet import UNet
from univid.vae import Autoencoder

PROMPT = "a red circle moves left"
FRAMES, SIZE = 4, 32
RESAMPLER = ResamplerConfig(width=24, depth=1, heads=3, head_channels=4, tokens=4, frames=None)
PER_FRAME = dataclasses.replace(RESAMPLER, tokens=2, frames=FRAMES)


def told(fps):
    return (NumberInput("fps", fps, "fps"),)


# U-Net, noise schedule and profile fields of each kind
RELATIVES = {
    "modelscope": ({}, {}, {}),
    "videocrafter2": (
        {"numbers": ("fps",)},
        {"x0_scale": 0.7},
        {"numbers": told(28.0), "eta": 1.0},
    ),
    "videocrafter1_i2v": (
        {"numbers": ("fps",), "image_stream": ImageStreamConfig(32, RESAMPLER)},
        {"x0_scale": 0.7},
        {"numbers": told(8.0), "eta": 1.0, "null_image": "grey"},
    ),
    "dynamicrafter": (
        {"numbers": ("fps",), "in_channels": 8, "image_stream": ImageStreamConfig(32, PER_FRAME)},
        {"x0_scale": 0.7, "prediction": "v", "zero_terminal_snr": True},
        {
            "numbers": told(24.0), "eta": 1.0, "null_image": "grey", "concat": "first",
            "rescale": 0.7, "sigma_schedule": "simple",
        },
    ),
}  # fmt: skip
RELATIVES["interpolation"] = (
    *RELATIVES["dynamicrafter"][:2],
    RELATIVES["dynamicrafter"][2] | {"concat": "ends"},
)


def build(kind):
    """A tiny model with random weights, whose profile asks for a clip of a fraction of a second."""
    unet, schedule, profile = RELATIVES[kind]
    config = dataclasses.replace(
        TINY,
        unet=dataclasses.replace(RELATIVE, context_dim=32, **unet),
        vae=dataclasses.replace(TINY.vae, channels=8, channel_mult=(1, 1, 2, 2)),
        text=dataclasses.replace(TINY.text, width=32, layers=2, embed_dim=32),
        vision=dataclasses.replace(TINY.vision, width=32, layers=1, embed_dim=32),
        schedule=dataclasses.replace(FAMILY.schedule, **schedule),
    )
    parts = [UNet(config.unet), Autoencoder(config.vae), TextEncoder(config.text)]
    parts.append(ImageEncoder(config.vision) if config.unet.image_stream is not None else None)
    parts = [part and randomize(part.eval()) for part in parts]
    small = {"frames": FRAMES, "height": SIZE, "width": SIZE, "steps": 2}
    return UniVid(config, with_fields(PROFILES["family"], **small, **profile), *parts)


def with_fields(profile, **fields):
    """The profile with fields of its own, its guidance's or its inputs' changed."""
    for name in ("guidance", "inputs"):
        part = getattr(profile, name)
        own = {key: fields.pop(key) for key in dataclasses.asdict(part) if key in fields}
        profile = dataclasses.replace(profile, **{name: dataclasses.replace(part, **own)})
    return dataclasses.replace(profile, **fields)


@pytest.fixture(scope="module")
def models():
    return {kind: build(kind) for kind in RELATIVES}


def picture(seed=0, height=24, width=40):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def takes_picture(kind):
    return kind not in ("modelscope", "videocrafter2")


def make(models, kind, **options):
    image = {"image": picture()} if takes_picture(kind) else {}
    return generate(models[kind], PROMPT, **gathered(**image | options))


class Spy:
    """Stands in front of the U-Net and keeps what it was asked."""

    def __init__(self, model, monkeypatch):
        self.conds, forward = [], model.unet.forward

        def call(x, timesteps, cond, **options):
            self.conds.append(cond)
            return forward(x, timesteps, cond, **options)

        monkeypatch.setattr(model.unet, "forward", call)


def far(a, b):
    return (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("kind", RELATIVES)
def test_a_clip_of_every_kind(models, kind):
    clip = make(models, kind)
    assert clip.shape == (1, 3, FRAMES, SIZE, SIZE) and clip.isfinite().all() and clip.std() > 0.01
    assert torch.equal(clip, make(models, kind))
    assert far(clip, make(models, kind, seed=1))
    assert far(clip, make(models, kind, eta=0.5))
    assert make(models, kind, frames=1).shape[2] == 1
    assert make(models, kind, frames=FRAMES + 3).shape[2] == FRAMES + 3
    if takes_picture(kind):
        assert far(clip, make(models, kind, image=picture(1)))
    if models[kind].config.unet.numbers:
        assert far(clip, make(models, kind, fps_number=3.0))
        number = models[kind].profile.inputs.number("fps").value
        assert torch.equal(clip, make(models, kind, fps_number=number))


@pytest.mark.parametrize("kind", ["videocrafter1_i2v", "dynamicrafter", "interpolation"])
@pytest.mark.parametrize("guider", [Joint(3.0), Separate(3.0, 2.0), Nested(3.0, 2.0)])
def test_a_clip_of_a_batch_is_the_clip_alone(models, kind, guider):
    images = torch.cat([picture(0), picture(1)])
    both = generate(models[kind], [PROMPT, "waves"], images, guidance=guider, seed=3)
    alone = generate(models[kind], "waves", images[1:], guidance=guider, seed=4)
    assert (both[1:] - alone).abs().max() < 1e-3
    assert far(both[:1], alone)


@pytest.mark.parametrize("guider", [Joint(3.0), Separate(3.0, 2.0), Nested(3.0, 2.0)])
def test_what_the_branches_are_shown(models, monkeypatch, guider):
    """e0: empty text and a grey picture; T, I: one of the two instead; concat latents and fps in all."""
    model = models["dynamicrafter"]
    spy = Spy(model, monkeypatch)
    generate(model, PROMPT, picture(), guidance=guider, image_weight=0.8)
    text = {True: model.text_encoder([PROMPT]), False: model.text_encoder([""])}
    seen = {True: model.image_encoder(picture()), False: model.image_encoder(torch.zeros(1, 3, 8, 8))}
    branches = {"e0": (False, False), "T": (True, False), "I": (False, True), "TI": (True, True)}
    order = [branches[name] for name in guider.plan(True, True)]
    assert len(order) == (2 if isinstance(guider, Joint) else 3)
    for cond in spy.conds:
        torch.testing.assert_close(cond.text, torch.cat([text[has] for has, _ in order]))
        torch.testing.assert_close(cond.image, torch.cat([seen[has] for _, has in order]))
        expected = [[1.0, 0.8 if has else 1.0] for _, has in order]
        torch.testing.assert_close(cond.weights, torch.tensor(expected))
        assert cond.numbers["fps"].tolist() == [24.0] * len(order)
        assert all(torch.equal(latents, cond.concat[0]) for latents in cond.concat)
    assert not torch.allclose(seen[True], seen[False], atol=0.1)


def test_without_a_picture_a_model_with_a_null_image_sees_grey(models, monkeypatch):
    model = models["videocrafter1_i2v"]
    spy = Spy(model, monkeypatch)
    clip = generate(model, PROMPT)
    grey = model.image_encoder(torch.zeros(1, 3, 8, 8)).expand(2, -1, -1)
    torch.testing.assert_close(spy.conds[0].image, grey)
    assert spy.conds[0].weights.tolist() == [[1.0, 1.0]] * 2
    # A weight of 0 on a picture is no picture; a picture that is grey is none either.
    assert torch.equal(clip, generate(model, PROMPT, picture(), image_weight=0.0))
    torch.testing.assert_close(clip, generate(model, PROMPT, torch.zeros(1, 3, 8, 8)), atol=1e-4, rtol=0)
    assert far(clip, generate(model, PROMPT, picture(), image_weight=0.01))


@pytest.mark.parametrize("kind", ["dynamicrafter", "interpolation"])
def test_the_concat_latents_show_the_cropped_picture(models, monkeypatch, kind):
    model, first, last = models[kind], picture(0), picture(1, 50, 20)
    spy = Spy(model, monkeypatch)
    ends = kind == "interpolation"
    generate(model, PROMPT, first, source=Source(last_image=last if ends else None))
    concat = spy.conds[0].concat[0]  # [c t h w]
    shown = torch.nn.functional.interpolate(first[..., 8:32], (SIZE, SIZE), mode="bicubic", antialias=True)
    expected = model.vae.encode(shown[:, :, None].clamp(-1, 1))[0]
    torch.testing.assert_close(concat[:, :1], expected)
    if not ends:
        torch.testing.assert_close(concat, expected.expand(-1, FRAMES, -1, -1))
        return
    assert (concat[:, 1:-1] == 0).all()
    shown = torch.nn.functional.interpolate(last[..., 15:35, :], (SIZE, SIZE), mode="bicubic", antialias=True)
    torch.testing.assert_close(concat[:, -1:], model.vae.encode(shown[:, :, None].clamp(-1, 1))[0])
    generate(model, PROMPT, first)
    loop = spy.conds[-1].concat[0]
    assert torch.equal(loop[:, -1], loop[:, 0]) and torch.equal(loop[:, 0], concat[:, 0])
    generate(model, PROMPT, first, source=Source(last_image=last), clip=Clip(frames=1))
    assert torch.equal(spy.conds[-1].concat[0], concat[:, :1])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("modelscope", {"image": picture()}, "from text alone"),
        ("modelscope", {"fps_number": 8.0}, "without fps_number"),
        ("modelscope", {"references": {1: 0}}, "has no PSTAttn"),
        ("videocrafter2", {"fps_number": 0.0}, "fps_number must be above 0"),
        ("videocrafter2", {"fps_number": float("nan")}, "fps_number must be above 0"),
        ("videocrafter2", {"eta": 2.0}, "eta must be from 0 to 1"),
        ("dynamicrafter", {"image": None}, "animates a picture, got none"),
        ("dynamicrafter", {"last_image": picture()}, "does not go from one picture to another"),
        ("interpolation", {"last_image": picture()[0]}, "last_image must be"),
        ("interpolation", {"last_image": picture().expand(2, -1, -1, -1)}, "last_image must be"),
    ],
)
def test_what_a_model_does_not_take_is_refused(models, kind, options, words):
    with pytest.raises(ValueError, match=words):
        make(models, kind, **options)


def test_a_model_without_its_number_says_so(models):
    model = models["videocrafter2"]
    bare = dataclasses.replace(model, profile=with_fields(model.profile, numbers=()))
    with pytest.raises(ValueError, match="needs fps_number"):
        generate(bare, PROMPT)
    assert generate(bare, PROMPT, clip=Clip(fps_number=8.0)).isfinite().all()


def test_a_null_image_needs_its_encoder(models):
    model = dataclasses.replace(models["videocrafter1_i2v"], image_encoder=None)
    with pytest.raises(ValueError, match="holds no image encoder"):
        generate(model, PROMPT)
