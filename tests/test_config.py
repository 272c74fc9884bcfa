"""Configs: presets, strict JSON, and what is refused."""

import dataclasses
import json

import pytest

from univid.config import (
    PAPER,
    PRESETS,
    PROFILES,
    TINY,
    ModelConfig,
    SamplingProfile,
    ScheduleConfig,
    from_json,
    to_json,
)
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
        (("unet", "image_stream"), {"projection": "resampler"}, "resampler"),
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


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.unet.model_channels = 1


def test_a_config_states_everything():
    """No field has a default: a file from today still means the same when a default would have changed."""
    kinds = [type(PAPER), SamplingProfile, ScheduleConfig]
    kinds += [type(part) for part in (PAPER.unet, PAPER.vae, PAPER.text, PAPER.vision)]
    kinds += [type(PAPER.unet.temporal), type(PAPER.unet.image_stream)]
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert field.default is field.default_factory is dataclasses.MISSING, (kind, field.name)


@pytest.mark.parametrize("name", PRESETS)
def test_parts_and_profile_of_a_preset_agree(name):
    config, profile = PRESETS[name], PROFILES[name]
    assert config.unet.in_channels == config.unet.out_channels == config.vae.latent_channels
    assert config.unet.context_dim == config.text.width
    assert config.unet.image_stream.width == config.vision.width
    assert config.text.embed_dim == config.vision.embed_dim  # one space, for the contrastive loss
    assert config.unet.factors == (1, 2, 4, 8)
    assert profile.height % config.vae.factor == profile.width % config.vae.factor == 0
    assert profile.sampler in SAMPLERS and profile.sigma_schedule in SIGMA_SCHEDULES
    assert profile.guidance in ("joint", "separate", "nested")
