"""What a model is for, by its sampling profile, and what to use where another one is meant."""

from .config import KNOWN, SamplingProfile

# role: (what such a model does, where it belongs)
ROLES = {
    "base": ("makes clips of its own", "`generate`, or PST Sampler"),
    "animate": ("animates a picture", "`generate` with a picture, or Encode Dual Prompt and PST Sampler"),
    "known": ("makes frames between or after known ones", "`interpolate` or `extend`"),
    "upscale": ("refines an enlarged video", "`upscale`"),
}


def role(profile: SamplingProfile) -> str:
    """One of ROLES."""
    if profile.inputs.concat in KNOWN:
        return "known"
    if profile.inputs.concat != "none":
        return "animate"
    return "upscale" if profile.start.from_video else "base"


def check_role(profile: SamplingProfile, needed: str, what: str) -> None:
    """Refuse a model of another role.

    what: the work, as the user knows it: "upscale".

    Raises:
        ValueError: as said.
    """
    found = role(profile)
    if found != needed:
        does, place = ROLES[found]
        raise ValueError(
            f"{what} needs a model that {ROLES[needed][0]}, got one that {does}; load such a model, and use "
            f"this one in {place}."
        )
