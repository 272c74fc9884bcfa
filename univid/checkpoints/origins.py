"""Where weights can come from: schedule, sampling profile and licence, as the authors state them.

Read in the repositories AILab-CVC/VideoCrafter, Doubiiu/DynamiCrafter, modelscope/modelscope and
showlab/Show-1. Licences of ModelScope and ZeroScope are those of their model cards as known to us; the
source has the last word.
"""

import dataclasses
from dataclasses import dataclass

from ..config import GuidanceProfile, InputProfile, NumberInput, SamplingProfile, ScheduleConfig
from ..presets import FROM_NOISE, NO_INPUTS, PROFILES, SD21_SCHEDULE


@dataclass(frozen=True)
class Origin:
    """One public model.

    title: its name in words. schedule: that it was trained with. licence: in words.
    """

    title: str
    schedule: ScheduleConfig
    profile: SamplingProfile
    licence: str


NON_COMMERCIAL = "CC-BY-NC-4.0, non-commercial, as its model card says; see the source"
VIDEOCRAFTER = (
    "Apache-2.0 text with a clause that limits it to research, non-commercial, as its repository says; "
    "see the source"
)
DYNAMICRAFTER = "Apache-2.0, as its repository says; see the source"
STABLE_DIFFUSION = "CreativeML Open RAIL++-M, the licence of Stable Diffusion 2"


def _schedule(x0_scale: float, prediction: str = "eps") -> ScheduleConfig:
    zero = prediction == "v"
    return dataclasses.replace(
        SD21_SCHEDULE, prediction=prediction, zero_terminal_snr=zero, x0_scale=x0_scale
    )


INPUTS = {field.name for field in dataclasses.fields(InputProfile)} - {"numbers"}


def _profile(
    frames: int, height: int, width: int, scale: float, rescale: float = 0.0, fps_number: float | None = None,
    fps_unit: str = "fps", **fields,
) -> SamplingProfile:  # fmt: skip
    numbers = () if fps_number is None else (NumberInput("fps", fps_number, fps_unit),)
    return dataclasses.replace(
        PROFILES["family"],
        frames=frames,
        height=height,
        width=width,
        guidance=GuidanceProfile("joint", scale, text=scale, image=scale, rescale=rescale),
        inputs=dataclasses.replace(
            NO_INPUTS, numbers=numbers, **{k: v for k, v in fields.items() if k in INPUTS}
        ),
        **{k: v for k, v in fields.items() if k not in INPUTS},
    )


def _dynamicrafter(title: str, x0_scale: float, height: int, width: int, **fields) -> Origin:
    profile = _profile(
        16, height, width, 7.5, eta=1.0, null_image="grey", sigma_schedule="simple", rescale=0.7,
        **fields,
    )  # fmt: skip
    return Origin(title, _schedule(x0_scale, "v"), profile, DYNAMICRAFTER)


EPS = _schedule(1.0)
ORIGINS = {
    "stable-diffusion-2": Origin(
        "Stable Diffusion 2.x", EPS, PROFILES["paper"], STABLE_DIFFUSION
    ),
    "modelscope": Origin(
        "ModelScope text-to-video", EPS, _profile(16, 256, 256, 9.0), NON_COMMERCIAL
    ),
    "zeroscope": Origin(
        "ZeroScope v2 576w", EPS, _profile(24, 320, 576, 9.0), NON_COMMERCIAL
    ),
    "zeroscope-xl": Origin(
        "ZeroScope v2 XL", EPS, _profile(24, 576, 1024, 9.0), NON_COMMERCIAL
    ),
    "show1-sr2": Origin(
        "Show-1's second super-resolution", EPS,
        _profile(
            29, 320, 576, 15.0, steps=40, sampler="dpmpp_2m", sigma_schedule="sgm_uniform",
            start=dataclasses.replace(FROM_NOISE, denoise=0.8),
        ),
        NON_COMMERCIAL,
    ),
    "videocrafter2": Origin(
        "VideoCrafter2 text-to-video", _schedule(0.7),
        _profile(16, 320, 512, 12.0, fps=10.0, eta=1.0, fps_number=28.0), VIDEOCRAFTER,
    ),
    "videocrafter1-i2v": Origin(
        "VideoCrafter1 image-to-video 512", _schedule(0.7),
        _profile(16, 320, 512, 12.0, fps=10.0, eta=1.0, fps_number=8.0, null_image="grey"), VIDEOCRAFTER,
    ),
    "dynamicrafter-256": Origin(
        "DynamiCrafter 256", EPS,
        _profile(
            16, 256, 256, 7.5, eta=1.0, fps_number=3.0, fps_unit="stride", null_image="grey", concat="first"
        ),
        DYNAMICRAFTER,
    ),
    "dynamicrafter-512": _dynamicrafter(
        "DynamiCrafter 512", 0.7, 320, 512, fps_number=24.0, concat="first"
    ),
    "dynamicrafter-512-interp": _dynamicrafter(
        "DynamiCrafter 512 interpolation", 0.7, 320, 512, fps_number=5.0, concat="ends"
    ),
    "dynamicrafter-1024": _dynamicrafter(
        "DynamiCrafter 1024", 0.3, 576, 1024, fps_number=10.0, concat="first"
    ),
}  # fmt: skip


def choose(candidates: tuple[str, ...], wanted: str | None, default: str | None = None) -> str:
    """The name in ORIGINS of a source that can be any of the candidates.

    Raises:
        ValueError: another one is wanted, or there are several and neither is one wanted nor a default given.
            The text continues a sentence that starts with the file's name.
    """
    if wanted is None and (default is not None or len(candidates) == 1):
        return default or candidates[0]
    if wanted in candidates:
        return wanted
    titles = " or ".join(f"{name!r} ({ORIGINS[name].title})" for name in candidates)
    if wanted is None:
        raise ValueError(
            f"can be several models with the same tensors; give the name {titles}, as source of Load UniVid "
            "or once to `python -m univid import --name`."
        )
    none = ", or none" if default is not None or len(candidates) == 1 else ""
    raise ValueError(f"is not {wanted!r}, as its tensors show; give the name {titles}{none}.")
