"""Architecture as data: frozen dataclasses and strict versioned JSON.

A field has no default, so a preset states everything and a checkpoint's header can rebuild the exact model.
Tuples indexed by level run from the finest (f = 1) to the coarsest (f = 8).
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass

FORMAT_VERSION = 2


TEMPORAL_KINDS = ("univid", "family")


@dataclass(frozen=True)
class TemporalConfig:
    """What turns the image trunk into a video network (paper III-A-1 and eq. 8), or its relatives' way.

    kind "univid": PSTConv after each of a ResBlock's two convolutions, TemAttn with one self-attention, and a
    single frame passes them by. kind "family" (ModelScope, VideoCrafter2, DynamiCrafter): four convolutions
    after the ResBlock, two self-attentions, and a single frame goes through them, as it does in the sources.
    """

    kind: str  # one of TEMPORAL_KINDS
    conv_kernels: tuple[int, ...]  # k_f a level, odd; () = no temporal convolutions
    segment_frames: tuple[int, ...]  # r_f a level: frames that share one reference frame; () = no PSTAttn
    attention: bool  # a temporal transformer after every spatial transformer
    input_heads: int | None  # of a temporal transformer after the first convolution; None = there is none
    position: bool  # a frame's place in the clip scales its text tokens and joins TemAttn's tokens

    def __post_init__(self):
        if self.kind not in TEMPORAL_KINDS:
            raise ValueError(f"temporal.kind must be among {TEMPORAL_KINDS}, got {self.kind!r}.")
        if self.kind == "univid" and self.input_heads is not None:
            raise ValueError(
                f"temporal.input_heads must be null for kind 'univid', got {self.input_heads}; "
                "take kind 'family'."
            )
        if self.kind == "family" and self.position:
            raise ValueError("temporal.position must be false for kind 'family', got true.")
        if any(k < 1 or k % 2 == 0 for k in self.conv_kernels):
            raise ValueError(f"temporal.conv_kernels must be odd and positive, got {self.conv_kernels}.")
        if any(r < 1 for r in self.segment_frames):
            raise ValueError(f"temporal.segment_frames must be at least 1, got {self.segment_frames}.")


@dataclass(frozen=True)
class ResamplerConfig:
    """Attention that turns a picture's tokens into few (IP-Adapter's; VideoCrafter1-I2V, DynamiCrafter)."""

    width: int
    depth: int
    heads: int
    head_channels: int
    tokens: int  # for the whole clip or, with `frames`, for each frame
    frames: int | None  # of the clips that it was trained on, each with tokens of its own; None = one for all


@dataclass(frozen=True)
class ImageStreamConfig:
    """The image side of the dual-stream cross-attention (eq. 7)."""

    width: int  # channels of the image tokens
    resampler: ResamplerConfig | None  # None: LayerNorm + Linear into the text context space


@dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion's U-Net and the temporal and image parts that hang on it."""

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[bool, ...]  # a transformer at this level; the middle block always has one
    head_channels: int
    context_dim: int
    norm_groups: int
    fps: bool  # the clip's fps has an embedding, which is added to that of the timestep
    temporal: TemporalConfig
    image_stream: ImageStreamConfig | None

    def __post_init__(self):
        levels = len(self.channel_mult)
        for name, per_level in (
            ("attention_levels", self.attention_levels),
            ("temporal.conv_kernels", self.temporal.conv_kernels),
            ("temporal.segment_frames", self.temporal.segment_frames),
        ):
            if per_level and len(per_level) != levels:
                raise ValueError(
                    f"{name} needs one entry for each of {levels} levels, got {len(per_level)}; "
                    "fix the config."
                )
        for mult in self.channel_mult:
            width = self.model_channels * mult
            if width % self.head_channels or width % self.norm_groups:
                raise ValueError(
                    f"a level's width must be a multiple of head_channels ({self.head_channels}) and of "
                    f"norm_groups ({self.norm_groups}), got {width}; fix the config."
                )

    @property
    def factors(self) -> tuple[int, ...]:
        """Downsampling factor f of each level: 1, 2, 4, 8."""
        return tuple(2**level for level in range(len(self.channel_mult)))


@dataclass(frozen=True)
class VAEConfig:
    """Stable Diffusion's AutoencoderKL at any width."""

    in_channels: int
    latent_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    norm_groups: int
    scale: float  # final latents = scale * raw latents

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class TextConfig:
    """An OpenCLIP text tower; tokens come from its penultimate layer through ln_final."""

    width: int
    heads: int
    layers: int
    context_length: int
    vocab_size: int
    embed_dim: int


@dataclass(frozen=True)
class VisionConfig:
    """An OpenCLIP vision tower; tokens come from its last layer before ln_post, class token included."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    head_width: int
    mlp_ratio: float
    embed_dim: int


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule that the network was trained on."""

    prediction: str  # "eps", "v" or "x0"
    beta_start: float
    beta_end: float
    num_timesteps: int
    zero_terminal_snr: bool
    x0_scale: float  # noise is mixed into x0 times a factor that falls from 1 to this; 1 = no such factor

    def __post_init__(self):
        if self.prediction not in ("eps", "v", "x0"):
            raise ValueError(f"prediction must be 'eps', 'v' or 'x0', got {self.prediction!r}.")
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "zero_terminal_snr needs prediction 'v' or 'x0': eps divides by zero at the last timestep."
            )
        if not 0 < self.x0_scale <= 1:
            raise ValueError(f"x0_scale must be above 0 and at most 1, got {self.x0_scale}; 1 is none.")


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. A part that a checkpoint does not hold is None."""

    unet: UNetConfig
    vae: VAEConfig | None
    text: TextConfig | None
    vision: VisionConfig | None
    schedule: ScheduleConfig


@dataclass(frozen=True)
class GuidanceProfile:
    """Guidance of a checkpoint; univid.guidance has the meaning of the scales."""

    kind: str  # "joint", "separate" or "nested"
    scale: float  # of joint
    text: float  # of separate and nested, as image
    image: float
    rescale: float


INPUT_CHOICES = {
    "fps_unit": ("fps", "stride"),
    "null_image": ("off", "grey"),
    "concat": ("none", "first", "ends"),
}


@dataclass(frozen=True)
class InputProfile:
    """What a checkpoint was trained to be given beside text and image tokens.

    fps_number: what an fps embedding is told, in fps_unit: frames a second ("fps"), or how many frames of
        the source lie between two of the clip ("stride"). None for a U-Net without one.
    null_image: what a clip without picture, and the unconditional branch, shows to the image stream:
        nothing ("off"), or a grey picture at weight 1 ("grey").
    concat: latents joined to the input: none; the picture in every frame ("first"); or the picture in the
        first frame, another in the last, zeros between ("ends").
    """

    fps_number: float | None
    fps_unit: str
    null_image: str
    concat: str

    def __post_init__(self):
        for name, choices in INPUT_CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be among {choices}, got {getattr(self, name)!r}.")
        if self.fps_number is not None and self.fps_number <= 0:
            raise ValueError(
                f"fps_number must be above 0, or null for a model without, got {self.fps_number}."
            )


@dataclass(frozen=True)
class SamplingProfile:
    """How a checkpoint wants to be sampled: the defaults of the command line and of the nodes."""

    frames: int
    height: int
    width: int
    fps: float  # of the finished video
    steps: int
    sampler: str
    sigma_schedule: str
    eta: float  # of the sampler "ddim": 0 = no fresh noise in a step, 1 = as much as the model knows
    guidance: GuidanceProfile
    inputs: InputProfile

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {self.eta}.")


def to_json(config) -> str:
    """Any config dataclass as JSON; `from_json` gives back an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=None, sort_keys=True)


def from_json(cls, text: str, version: int = FORMAT_VERSION):
    """Read a config of dataclass `cls` strictly, as the given version of the format wrote it.

    Raises:
        ValueError: not JSON, a field unknown, missing or of another type; the sentence names the field.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"expected a {cls.__name__} as JSON, got text that does not parse ({error})."
        ) from error
    if version == 1:
        for part, fields in _unsaid(cls, data):
            if isinstance(part, dict):
                if known := sorted(part.keys() & fields.keys()):
                    raise ValueError(f"format version 1 has no fields {known}; the header is damaged.")
                part.update(fields)
    return _build(cls, data, cls.__name__)


# Fields of GuidanceProfile, and what they were called in version 1's SamplingProfile.
GUIDANCE_OF_1 = {
    "kind": "guidance",
    "scale": "guidance_scale",
    "text": "text_guidance",
    "image": "image_guidance",
    "rescale": "guidance_rescale",
}


def _unsaid(cls, data) -> list[tuple[object, dict]]:
    """What version 1, which knew the kind "univid" alone, left unsaid: the parts of `data`, and their fields.

    What does not have the form of version 1 stays as it is, for the strict reading to refuse it.
    """
    if cls is SamplingProfile and isinstance(data, dict):
        data["guidance"] = {new: data.pop(old) for new, old in GUIDANCE_OF_1.items() if old in data}
        inputs = {"fps_number": None, "fps_unit": "fps", "null_image": "off", "concat": "none"}
        return [(data, {"eta": 0.0, "inputs": inputs})]
    if cls is not ModelConfig or not isinstance(data, dict):
        return []
    unet = data.get("unet") if isinstance(data.get("unet"), dict) else {}
    stream = unet.get("image_stream")
    linear = isinstance(stream, dict) and stream.get("projection") == "linear"
    if linear:
        del stream["projection"]
    return [
        (data.get("schedule"), {"x0_scale": 1.0}),
        (data.get("unet"), {"fps": False}),
        (unet.get("temporal"), {"kind": "univid", "input_heads": None}),
        (stream if linear else None, {"resampler": None}),
    ]


def _build(kind, value, where: str):
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        present = [k for k in typing.get_args(kind) if k is not types.NoneType]
        return None if value is None else _build(present[0], value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {type(value).__name__}.")
        hints = typing.get_type_hints(kind)
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(
                f"{where} has unknown fields {_short(unknown)}; this version knows {sorted(hints)}."
            )
        if missing := sorted(hints.keys() - value.keys()):
            raise ValueError(f"{where} lacks the fields {missing}.")
        return kind(**{name: _build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {type(value).__name__}.")
        return tuple(_build(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where} must be {_WORDS[kind]}, got {_short(value)}.")
    if kind is int and value < 1:
        raise ValueError(f"{where} must be at least 1, got {value}.")
    return value


_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def _short(value) -> str:
    """A value as a message may show it: a hostile file must not fill the screen."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
