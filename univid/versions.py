"""Configs of earlier versions of the checkpoint format, brought to today's form one version at a time.

Each step is a function over the JSON of one config. It adds what its version left unsaid and moves what has
moved; what does not have the form of its version stays as it is, for the strict reading to refuse.
"""

from collections.abc import Callable, Collection

FORMAT_VERSION = 3

# Fields of GuidanceProfile, and what they were called in version 1's SamplingProfile.
GUIDANCE_OF_1 = {
    "kind": "guidance",
    "scale": "guidance_scale",
    "text": "text_guidance",
    "image": "image_guidance",
    "rescale": "guidance_rescale",
}


def upgraded(kind: str, data, version: int):
    """The JSON `data` of a config of class `kind`, as `version` of the format wrote it, in today's form.

    Raises:
        ValueError: it has fields that its version did not know.
    """
    for step, change in enumerate(STEPS.get(kind, ()), start=1):
        if version <= step and isinstance(data, dict):
            change(data)
    return data


def _model_to_2(model: dict) -> None:
    """Version 1 knew the kind "univid" alone."""
    unet = _part(model, "unet")
    stream = _part(unet, "image_stream")
    _add(1, _part(model, "schedule"), x0_scale=1.0)
    _add(1, unet, fps=False)
    _add(1, _part(unet, "temporal"), kind="univid", input_heads=None)
    if stream.get("projection") == "linear":
        del stream["projection"]
        _add(1, stream, resampler=None)


def _profile_to_2(profile: dict) -> None:
    """Version 1 had guidance in flat fields."""
    inputs = {"fps_number": None, "fps_unit": "fps", "null_image": "off", "concat": "none"}
    guidance = {new: profile.pop(old) for new, old in GUIDANCE_OF_1.items() if old in profile}
    _add(1, profile, eta=0.0, inputs=inputs)
    profile["guidance"] = guidance


def _model_to_3(model: dict) -> None:
    """Version 2 knew one noise schedule, one number and one kind of frame places."""
    schedule, unet = _part(model, "schedule"), _part(model, "unet")
    temporal = _part(unet, "temporal")
    _refuse(2, schedule, {"betas"})
    if {"beta_start", "beta_end"} <= schedule.keys():
        start, end = schedule.pop("beta_start"), schedule.pop("beta_end")
        schedule["betas"] = {"name": "scaled_linear", "start": start, "end": end}
    _refuse(2, unet, {"numbers"})
    if "fps" in unet:
        unet["numbers"] = ["fps"] if _flag(2, unet.pop("fps"), "fps") else []
    if "position" in temporal:
        known = _flag(2, temporal["position"], "position")
        temporal["position"] = {"scale": 1000.0, "period": 10000.0} if known else None


def _profile_to_3(profile: dict) -> None:
    """Version 2 started at the schedule's last timestep, and had fields for the one number that it knew."""
    _add(2, profile, start={"timestep": None, "denoise": 1.0, "biased_noise": None})
    inputs = _part(profile, "inputs")
    _refuse(2, inputs, {"numbers"})
    if {"fps_number", "fps_unit"} <= inputs.keys():
        value, unit = inputs.pop("fps_number"), inputs.pop("fps_unit")
        inputs["numbers"] = [] if value is None else [{"name": "fps", "value": value, "unit": unit}]


# From version 1 to 2, from 2 to 3 and so on; each changes `data` in place.
STEPS: dict[str, tuple[Callable[[dict], None], ...]] = {
    "ModelConfig": (_model_to_2, _model_to_3),
    "SamplingProfile": (_profile_to_2, _profile_to_3),
}


def _part(data: dict, name: str) -> dict:
    """An object inside another; an empty one stands for what is none, so that it is left alone."""
    part = data.get(name)
    return part if isinstance(part, dict) else {}


def _add(version: int, part: dict, **fields) -> None:
    """Say what `version` left unsaid."""
    _refuse(version, part, fields.keys())
    part.update(fields)


def _refuse(version: int, part: dict, names: Collection[str]) -> None:
    if known := sorted(part.keys() & set(names)):
        raise ValueError(f"format version {version} has no fields {known}; the header is damaged.")


def _flag(version: int, value, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false in format version {version}; the header is damaged.")
    return value
