"""Configs: presets, strict JSON, what is refused; older versions of the format are in test_versions.py."""

import dataclasses
import json

import pytest

from univid import config as configs
from univid.config import ModelConfig, SamplingProfile, check_start, from_json, to_json
from univid.presets import PRESETS, PROFILES, TINY
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
        (changed(TINY, unet=3), ["ModelConfig.unet", "object", "got 3."]),
        (changed(TINY, "unet", model_channels="48"), ["unet.model_channels", "whole number", "'48'"]),
        (changed(TINY, "unet", model_channels=48.0), ["unet.model_channels", "whole number", "48.0"]),
        (changed(TINY, "unet", model_channels=True), ["unet.model_channels", "whole number", "True"]),
        (changed(TINY, "unet", channel_mult=2), ["unet.channel_mult", "list", "got 2."]),
        (changed(TINY, "unet", channel_mult=[1, 2, "2", 2]), ["unet.channel_mult[2]", "whole number", "'2'"]),
        (changed(TINY, "unet", "temporal", attention=1), ["temporal.attention", "true or false", "1"]),
        (changed(TINY, "unet", "image_stream", projection="linear"), ["unknown", "projection"]),
        (changed(TINY, "unet", "image_stream", resampler=3), ["image_stream.resampler", "object", "got 3."]),
        (changed(TINY, "vae", scale="big"), ["vae.scale", "finite number", "'big'"]),
        (changed(TINY, "vae", scale=[[]]), ["vae.scale", "finite number"]),
        (changed(TINY, "vae", scale=float("nan")), ["vae.scale", "finite number", "nan"]),
        (changed(TINY, "vae", scale=10**400), ["vae.scale", "finite number", "1000"]),
        (changed(TINY, "schedule", num_timesteps=-1), ["num_timesteps", "at least 1", "-1"]),
        (changed(TINY, "unet", model_channels=2**31), ["model_channels", "at most 2,147,483,647"]),
        (changed(TINY, "unet", channel_mult=[1] * 65), ["channel_mult", "at most 64 entries", "65"]),
        (changed(TINY, "schedule", prediction="v" * 201), ["prediction", "at most 200 characters"]),
        (changed(TINY, "schedule", num_timesteps=100_001), ["num_timesteps", "at most 100,000"]),
        (changed(TINY, **{"x" * 10**6: 1}), ["unknown fields x"]),
        (to_json(TINY).replace("1000", "9" * 5000, 1), ["does not parse"]),
        (to_json(TINY)[:-1], ["does not parse"]),
        ("", ["does not parse"]),
        ("null", ["object", "got null."]),
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
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


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
        (("unet", "temporal", "position"), {"scale": 0.0}, "position.scale"),
        (("unet", "temporal", "position"), {"period": 1.0}, "position.period"),
        (("unet",), {"numbers": ["fps", "mood"]}, "'mood'"),
        (("unet",), {"numbers": ["fps", "fps"]}, "once"),
        (("unet",), {"head_channels": 36}, "head_channels (36)"),
        (("unet",), {"norm_groups": 32}, "norm_groups (32)"),
        (("schedule",), {"prediction": "noise"}, "'noise'"),
        (("schedule",), {"prediction": "eps"}, "zero_terminal_snr"),
        (("schedule", "betas"), {"name": "linear"}, "'linear'"),
        (("schedule", "betas"), {"name": "squaredcos_cap_v2"}, "no start and end, got (0.00085, 0.012)"),
        (("schedule", "betas"), {"start": 0.0}, "above 0 to below 1, got (0.0, 0.012)"),
        (("schedule", "betas"), {"start": 0.1}, "above 0 to below 1"),
        (("schedule", "betas"), {"end": 1.0}, "above 0 to below 1"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(path, fields, word):
    with pytest.raises(ValueError) as caught:
        from_json(ModelConfig, changed(TINY, *path, **fields))
    assert word in str(caught.value)


def test_temporal_parts_may_be_left_out():
    bare = changed(TINY, "unet", "temporal", conv_kernels=[], segment_frames=[], attention=False)
    assert from_json(ModelConfig, bare).unet.temporal.conv_kernels == ()


def fps(**fields):
    return {"numbers": [{"name": "fps", "value": 8.0, "unit": "fps"} | fields]}


@pytest.mark.parametrize(
    "path, fields, words",
    [
        ("inputs", fps(value=0.0), "fps must be above 0"),
        ("inputs", fps(unit="hz"), "unit of fps must be among"),
        ("inputs", fps(name="mood"), "'mood'"),
        ("inputs", {"numbers": 2 * fps()["numbers"]}, "once"),
        ("inputs", {"null_image": "black"}, "null_image must be among"),
        ("inputs", {"concat": "last"}, "concat must be among"),
        ("start", {"timestep": 0}, "start.timestep must be at least 1"),
        ("start", {"denoise": 0.0}, "start.denoise must be above 0"),
        ("start", {"denoise": 1.5}, "start.denoise must be above 0 and at most 1"),
        ("start", {"biased_noise": {"t_m": 700.0, "t_n": 700.0}}, "0 <= t_m < t_n, got 700 and 700"),
        ("start", {"biased_noise": {"t_m": -1.0, "t_n": 700.0}}, "0 <= t_m < t_n"),
        ("start", {"biased_noise": {"t_m": 600.0}}, "lacks the fields .*t_n"),
        ("start", {"biased_noise": {"t_m": 0.0, "t_n": 700.5}}, "a whole timestep t_n, got 700.5"),
        ("start", {"biased_noise": {"t_m": 0.0, "t_n": 700.0}}, "start.timestep must be null"),
    ],
)
def test_a_profile_that_means_nothing_is_refused(path, fields, words):
    with pytest.raises(ValueError, match=words):
        from_json(SamplingProfile, changed(PROFILES["tiny"], path, **fields))
    with pytest.raises(ValueError, match="eta must be from 0 to 1"):
        from_json(SamplingProfile, changed(PROFILES["tiny"], eta=1.5))


def start(**fields):
    """A profile that starts elsewhere."""
    return from_json(SamplingProfile, changed(PROFILES["paper"], "start", **fields))


def test_a_start_is_one_of_the_timesteps():
    for profile in PROFILES.values():
        check_start(TINY, profile)
    check_start(TINY, start(timestep=999))
    for fields in ({"timestep": 1000}, {"biased_noise": {"t_m": 0, "t_n": 1000}}):
        with pytest.raises(ValueError, match="one of the schedule's 1000 timesteps, got 1000"):
            check_start(TINY, start(**fields))


@pytest.mark.parametrize("x0_scale", [0.0, 1.5])
def test_an_x0_scale_out_of_range_is_refused(x0_scale):
    with pytest.raises(ValueError, match="x0_scale must be above 0 and at most 1"):
        from_json(ModelConfig, changed(TINY, "schedule", x0_scale=x0_scale))


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.unet.model_channels = 1


def test_a_config_states_everything():
    """No field has a default: a file from today still means the same when a default would have changed."""
    kinds = [kind for kind in vars(configs).values() if dataclasses.is_dataclass(kind)]
    assert len(kinds) == 17
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
