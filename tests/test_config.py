"""Configs: presets, strict JSON, and what is refused."""

import dataclasses
import json

import pytest

from univid.config import ModelConfig, ResamplerConfig, SamplingProfile, ScheduleConfig, from_json, to_json
from univid.presets import PAPER, PRESETS, PROFILES, TINY
from univid.samplers import SAMPLERS, SIGMA_SCHEDULES

DEEP = json.loads("[" * 500 + "]" * 500)


def changed(config, *path, **fields):
    """The JSON of `config` with the fields at `path` set, or taken out where the value is None."""
    data = json.loads(to_json(config))
    target = data
    for name in path:
        target = target[name]
    target.update(fields)
    for name in [name for name, value in fields.items() if value is None]:
        del target[name]
    return json.dumps(data)


@pytest.mark.parametrize("config", [*PRESETS.values(), *PROFILES.values()], ids=[*PRESETS, *PROFILES])
def test_json_gives_back_an_equal_config(config):
    text = to_json(config)
    assert from_json(type(config), text) == config
    assert to_json(from_json(type(config), text)) == text
    assert "\n" not in text  # fits into a checkpoint's header as it is


def test_a_part_may_be_absent():
    config = dataclasses.replace(TINY, vae=None, text=None, vision=None)
    assert from_json(ModelConfig, to_json(config)) == config


def test_a_whole_number_is_a_float_too():
    profile = from_json(SamplingProfile, changed(PROFILES["tiny"], fps=8))
    assert profile == PROFILES["tiny"] and type(profile.fps) is float


@pytest.mark.parametrize(
    "text, words",
    [
        (changed(TINY, hidden=1), ["ModelConfig", "unknown", "hidden"]),
        (changed(TINY, "unet", "temporal", rank=1), ["ModelConfig.unet.temporal", "unknown", "rank"]),
        (changed(TINY, schedule=None), ["ModelConfig", "lacks", "schedule"]),
        (changed(TINY, "vae", scale=None), ["ModelConfig.vae", "lacks", "scale"]),
        (changed(TINY, unet=3), ["ModelConfig.unet", "object", "int"]),
        (changed(TINY, "unet", model_channels="48"), ["unet.model_channels", "whole number", "'48'"]),
        (changed(TINY, "unet", model_channels=48.0), ["unet.model_channels", "whole number", "48.0"]),
        (changed(TINY, "unet", model_channels=True), ["unet.model_channels", "whole number", "True"]),
        (changed(TINY, "unet", channel_mult=2), ["unet.channel_mult", "list", "int"]),
        (changed(TINY, "unet", channel_mult=[1, 2, "2", 2]), ["unet.channel_mult[2]", "whole number", "'2'"]),
        (changed(TINY, "unet", "temporal", attention=1), ["temporal.attention", "true or false", "1"]),
        (changed(TINY, "unet", "image_stream", projection="linear"), ["unknown", "projection"]),
        (changed(TINY, "unet", "image_stream", resampler=3), ["image_stream.resampler", "object", "int"]),
        (changed(TINY, "vae", scale="big"), ["vae.scale", "finite number", "'big'"]),
        (changed(TINY, "vae", scale=[[]]), ["vae.scale", "finite number"]),
        (changed(TINY, "vae", scale=float("nan")), ["vae.scale", "finite number", "nan"]),
        (changed(TINY, "vae", scale=10**400), ["vae.scale", "finite number", "1000"]),
        (changed(TINY, "schedule", num_timesteps=-1), ["num_timesteps", "at least 1", "-1"]),
        (to_json(TINY)[:-1], ["does not parse"]),
        ("", ["does not parse"]),
        ("null", ["object", "NoneType"]),
        ("[" * 100_000 + "]" * 100_000, ["does not parse"]),
        ('{"unet":' * 100_000 + "1" + "}" * 100_000, ["does not parse"]),
        (changed(TINY, "unet", model_channels=DEEP), ["unet.model_channels", "whole number"]),
    ],
)  # fmt: skip
def test_json_that_does_not_fit_is_refused(text, words):
    with pytest.raises(ValueError) as caught:
        from_json(ModelConfig, text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "path, fields, word",
    [
        (("unet",), {"attention_levels": [True, True]}, "attention_levels"),
        (("unet", "temporal"), {"conv_kernels": [3, 5]}, "conv_kernels"),
        (("unet", "temporal"), {"conv_kernels": [3, 5, 7, 8]}, "odd"),
        (("unet", "temporal"), {"conv_kernels": [3, 5, 7, -1]}, "at least 1"),
        (("unet", "temporal"), {"segment_frames": [8, 4, 2]}, "segment_frames"),
        (("unet", "temporal"), {"segment_frames": [8, 4, 2, 0]}, "segment_frames"),
        (("unet", "temporal"), {"kind": "relative"}, "relative"),
        (("unet", "temporal"), {"input_heads": 8}, "input_heads"),
        (("unet", "temporal"), {"kind": "family"}, "temporal.position"),
        (("unet",), {"head_channels": 36}, "head_channels (36)"),
        (("unet",), {"norm_groups": 32}, "norm_groups (32)"),
        (("schedule",), {"prediction": "noise"}, "'noise'"),
        (("schedule",), {"prediction": "eps"}, "zero_terminal_snr"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(path, fields, word):
    with pytest.raises(ValueError) as caught:
        from_json(ModelConfig, changed(TINY, *path, **fields))
    assert word in str(caught.value)


def test_temporal_parts_may_be_left_out():
    bare = changed(TINY, "unet", "temporal", conv_kernels=[], segment_frames=[], attention=False)
    assert from_json(ModelConfig, bare).unet.temporal.conv_kernels == ()


def version_1(config):
    """The JSON that version 1 of the format wrote for a config that it knew."""
    data = json.loads(to_json(config))
    unet = data["unet"]
    del (
        data["schedule"]["x0_scale"],
        unet["fps"],
        unet["temporal"]["kind"],
        unet["temporal"]["input_heads"],
        unet["image_stream"]["resampler"],
    )
    unet["image_stream"]["projection"] = "linear"
    return data


def profile_1(profile):
    """The same for a sampling profile."""
    data = json.loads(to_json(profile))
    guidance = data.pop("guidance")
    del data["eta"], data["inputs"]
    names = ("guidance_scale", "text_guidance", "image_guidance", "guidance_rescale")
    flat = zip(names, (guidance[name] for name in ("scale", "text", "image", "rescale")), strict=True)
    return data | {"guidance": guidance["kind"]} | dict(flat)


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["tiny", "paper"])
def test_version_1_is_read_as_it_was_meant(config):
    text = json.dumps(version_1(config))
    assert from_json(ModelConfig, text, version=1) == config
    with pytest.raises(ValueError, match="lacks the fields"):
        from_json(ModelConfig, text)
    assert from_json(SamplingProfile, json.dumps(profile_1(PROFILES["tiny"])), version=1) == PROFILES["tiny"]
    with pytest.raises(ValueError, match="version 1 has no fields.*eta.*inputs"):
        from_json(SamplingProfile, to_json(PROFILES["tiny"]), version=1)


@pytest.mark.parametrize(
    "path, fields, words",
    [
        ((), {"colour": 1}, ["unknown", "colour"]),
        ((), {"unet": 3}, ["unet", "object"]),
        (("unet",), {"fps": False}, ["version 1", "fps"]),
        (("unet",), {"temporal": 3}, ["unet.temporal", "object"]),
        (("unet",), {"image_stream": "x"}, ["unet.image_stream", "object"]),
        (("unet", "temporal"), {"kind": "family"}, ["version 1", "kind"]),
        (("unet", "temporal"), {"rank": 1}, ["unknown", "rank"]),
        (("unet", "image_stream"), {"projection": "resampler"}, ["unknown", "projection"]),
        (("unet", "image_stream"), {"resampler": None}, ["version 1", "resampler"]),
    ],
)
def test_version_1_is_read_as_strictly(path, fields, words):
    data = version_1(TINY)
    target = data
    for name in path:
        target = target[name]
    target.update(fields)
    with pytest.raises(ValueError) as caught:
        from_json(ModelConfig, json.dumps(data), version=1)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"unet": {}}', '{"unet": {"image_stream": null}}'])
def test_version_1_of_another_form_is_refused(text):
    with pytest.raises(ValueError):
        from_json(ModelConfig, text, version=1)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"fps_number": 0.0}, "fps_number must be above 0"),
        ({"fps_unit": "hz"}, "fps_unit must be among"),
        ({"null_image": "black"}, "null_image must be among"),
        ({"concat": "last"}, "concat must be among"),
    ],
)
def test_a_profile_that_means_nothing_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        from_json(SamplingProfile, changed(PROFILES["tiny"], "inputs", **fields))
    with pytest.raises(ValueError, match="eta must be from 0 to 1"):
        from_json(SamplingProfile, changed(PROFILES["tiny"], eta=1.5))


@pytest.mark.parametrize("x0_scale", [0.0, 1.5])
def test_an_x0_scale_out_of_range_is_refused(x0_scale):
    with pytest.raises(ValueError, match="x0_scale must be above 0 and at most 1"):
        from_json(ModelConfig, changed(TINY, "schedule", x0_scale=x0_scale))


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.unet.model_channels = 1


def test_a_config_states_everything():
    """No field has a default: a file from today still means the same when a default would have changed."""
    kinds = [type(PAPER), SamplingProfile, ScheduleConfig]
    kinds += [type(part) for part in (PAPER.unet, PAPER.vae, PAPER.text, PAPER.vision)]
    kinds += [type(PROFILES["paper"].guidance), type(PROFILES["paper"].inputs)]
    kinds += [type(PAPER.unet.temporal), type(PAPER.unet.image_stream), ResamplerConfig]
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert field.default is field.default_factory is dataclasses.MISSING, (kind, field.name)


@pytest.mark.parametrize("name", PRESETS)
def test_parts_and_profile_of_a_preset_agree(name):
    config, profile = PRESETS[name], PROFILES[name]
    assert config.unet.in_channels == config.unet.out_channels == config.vae.latent_channels
    assert config.unet.context_dim == config.text.width
    assert (config.unet.image_stream is None) == (config.vision is None)
    if config.vision is not None:
        assert config.unet.image_stream.width == config.vision.width
        assert config.text.embed_dim == config.vision.embed_dim  # one space, for the contrastive loss
    assert config.unet.factors == (1, 2, 4, 8)
    assert profile.height % config.vae.factor == profile.width % config.vae.factor == 0
    assert profile.sampler in SAMPLERS and profile.sigma_schedule in SIGMA_SCHEDULES
    assert profile.guidance.kind in ("joint", "separate", "nested")
