"""Files of earlier versions of the format: read as they were meant, strictly, and what they gave."""

import dataclasses
import json

import pytest
import torch
from format_files import BUILT_IN, HEADERS, clip, clips, write

from univid.checkpoints import built_in_path, load
from univid.checkpoints.native import parse_header, save
from univid.config import ModelConfig, NumberInput, PositionConfig, SamplingProfile, from_json
from univid.presets import FROM_NOISE, PROFILES, TINY
from univid.versions import FORMAT_VERSION

CLIPS = clips()


@pytest.mark.parametrize("name", HEADERS)
def test_a_file_gives_what_it_gave(name, tmp_path):
    path = write(name, tmp_path, built_in_path())
    given = clip(path)
    torch.testing.assert_close(given, CLIPS[name], rtol=0, atol=2e-5)
    others = [other for key, other in CLIPS.items() if key.split()[1] != name.split()[1]]
    assert all((given - other).abs().max() > 1e-3 for other in others)
    model = load(path)  # and written again as today's, it is the same
    save(tmp_path / "again.safetensors", model)
    assert load(tmp_path / "again.safetensors").config == model.config
    assert torch.equal(clip(tmp_path / "again.safetensors"), given)


def test_headers_are_read_as_they_were_meant():
    for name, header in HEADERS.items():
        config, profile, _ = parse_header(header)
        told = json.loads(header["profile"]).get("inputs", {}).get("fps_number")
        expected = () if told is None else (NumberInput("fps", told, "fps"),)
        assert profile.inputs.numbers == expected and profile.start == FROM_NOISE, name
        assert config.unet.numbers == tuple(number.name for number in expected)
        assert config.schedule.betas == TINY.schedule.betas
        family = config.unet.temporal.kind == "family"
        assert config.unet.temporal.position == (None if family else PositionConfig(1000.0, 10000.0))
    config, profile, info = parse_header(HEADERS[BUILT_IN])
    temporal = dataclasses.replace(TINY.unet.temporal, position=PositionConfig(1000.0, 10000.0))
    assert config == dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, temporal=temporal))
    assert info["training_step"] == "400"
    assert parse_header(HEADERS["1 tiny"])[:2] == parse_header(HEADERS["2 tiny"])[:2]
    assert parse_header(HEADERS["2 videocrafter2"])[1].inputs.numbers == (NumberInput("fps", 28.0, "fps"),)
    assert (profile.steps, profile.sampler) == (10, "dpmpp_2m")
    assert profile.guidance == dataclasses.replace(PROFILES["tiny"].guidance, scale=3.0)


def data(version, kind):
    """The JSON of the small tiny model's config or profile in an older version."""
    header = HEADERS[f"{version} tiny"]
    return json.loads(header["config" if kind is ModelConfig else "profile"])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", [ModelConfig, SamplingProfile])
def test_an_older_form_is_no_newer_version(version, kind):
    text = json.dumps(data(version, kind))
    assert from_json(kind, text, version) == from_json(kind, json.dumps(data(2, kind)), 2)
    for newer in range(version + 1, FORMAT_VERSION + 1):
        with pytest.raises(ValueError, match="lacks the fields|unknown fields|true or false|must be"):
            from_json(kind, text, newer)


@pytest.mark.parametrize(
    "version, path, fields, words",
    [
        (1, (), {"colour": 1}, ["unknown", "colour"]),
        (1, (), {"unet": 3}, ["unet", "object"]),
        (1, ("unet",), {"fps": False}, ["version 1", "fps"]),
        (1, ("unet",), {"temporal": 3}, ["unet.temporal", "object"]),
        (1, ("unet",), {"image_stream": "x"}, ["unet.image_stream", "object"]),
        (1, ("unet", "temporal"), {"kind": "family"}, ["version 1", "kind"]),
        (1, ("unet", "temporal"), {"rank": 1}, ["unknown", "rank"]),
        (1, ("unet", "image_stream"), {"projection": "resampler"}, ["unknown", "projection"]),
        (1, ("unet", "image_stream"), {"resampler": None}, ["version 1", "resampler"]),
        (1, ("unet",), {"numbers": []}, ["version 2", "numbers"]),
        (2, ("unet",), {"numbers": []}, ["version 2", "numbers"]),
        (2, ("unet",), {"fps": 1}, ["fps", "true or false", "version 2"]),
        (2, ("unet",), {"temporal": None}, ["unet.temporal", "object"]),
        (2, ("unet", "temporal"), {"position": {"scale": 1.0, "period": 2.0}}, ["position", "true or false"]),
        (2, ("schedule",), {"betas": {}}, ["version 2", "betas"]),
        (2, ("schedule",), {"beta_start": "x"}, ["betas.start", "finite number"]),
        (2, ("schedule",), {"x0_scale": 2.0}, ["x0_scale"]),
    ],
)
def test_older_configs_are_read_as_strictly(version, path, fields, words):
    whole = target = data(version, ModelConfig)
    for name in path:
        target = target[name]
    target.update(fields)
    with pytest.raises(ValueError) as caught:
        from_json(ModelConfig, json.dumps(whole), version)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "version, path, fields, words",
    [
        (1, (), {"eta": 0.0}, ["version 1", "eta"]),
        (1, (), {"guidance_scale": "3"}, ["guidance.scale", "finite number"]),
        (2, (), {"start": None}, ["version 2", "start"]),
        (2, ("inputs",), {"numbers": []}, ["version 2", "numbers"]),
        (2, ("inputs",), {"fps_number": 0.0}, ["fps must be above 0"]),
        (2, ("inputs",), {"fps_number": 8.0, "fps_unit": "hz"}, ["unit of fps", "hz"]),
        (2, ("inputs",), {"mood": 1}, ["unknown", "mood"]),
    ],
)
def test_older_profiles_are_read_as_strictly(version, path, fields, words):
    whole = target = data(version, SamplingProfile)
    for name in path:
        target = target[name]
    target.update(fields)
    with pytest.raises(ValueError) as caught:
        from_json(SamplingProfile, json.dumps(whole), version)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"unet": {}}', '{"unet": {"image_stream": null}}'])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", [ModelConfig, SamplingProfile])
def test_an_older_version_of_another_form_is_refused(text, version, kind):
    with pytest.raises(ValueError):
        from_json(kind, text, version)
