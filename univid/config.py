"""Architecture as data: frozen dataclasses, one dict of presets, strict versioned JSON.

A field has no default, so a preset states everything and a checkpoint's header can rebuild the exact model.
Tuples indexed by level run from the finest (f = 1) to the coarsest (f = 8).
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TemporalConfig:
    """What turns the image trunk into a video network (paper III-A-1 and eq. 8)."""

    conv_kernels: tuple[int, ...]  # k_f a level, odd; () = no PSTConv
    segment_frames: tuple[int, ...]  # r_f a level: frames that share one reference frame; () = no PSTAttn
    attention: bool  # TemAttn after every spatial transformer
    position: bool  # a frame's place in the clip scales its text tokens and joins TemAttn's tokens


@dataclass(frozen=True)
class ImageStreamConfig:
    """The image side of the dual-stream cross-attention (eq. 7)."""

    projection: str  # "linear": LayerNorm + Linear into the text context space
    width: int  # channels of the image tokens


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
    temporal: TemporalConfig
    image_stream: ImageStreamConfig

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
        if any(k < 1 or k % 2 == 0 for k in self.temporal.conv_kernels):
            raise ValueError(
                f"temporal.conv_kernels must be odd and positive, got {self.temporal.conv_kernels}."
            )
        if any(r < 1 for r in self.temporal.segment_frames):
            raise ValueError(
                f"temporal.segment_frames must be at least 1, got {self.temporal.segment_frames}."
            )
        if self.image_stream.projection != "linear":
            raise ValueError(
                f"image_stream.projection must be 'linear', got {self.image_stream.projection!r}."
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

    def __post_init__(self):
        if self.prediction not in ("eps", "v", "x0"):
            raise ValueError(f"prediction must be 'eps', 'v' or 'x0', got {self.prediction!r}.")
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "zero_terminal_snr needs prediction 'v' or 'x0': eps divides by zero at the last timestep."
            )


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. A part that a checkpoint does not hold is None."""

    unet: UNetConfig
    vae: VAEConfig | None
    text: TextConfig | None
    vision: VisionConfig | None
    schedule: ScheduleConfig


@dataclass(frozen=True)
class SamplingProfile:
    """How a checkpoint wants to be sampled: the defaults of the command line and of the nodes."""

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    sampler: str
    sigma_schedule: str
    guidance: str  # "joint", "separate" or "nested"
    guidance_scale: float
    text_guidance: float
    image_guidance: float
    guidance_rescale: float


SD21_SCHEDULE = ScheduleConfig(
    prediction="eps", beta_start=0.00085, beta_end=0.012, num_timesteps=1000, zero_terminal_snr=False
)

PAPER = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention_levels=(True, True, True, False),
        head_channels=64,
        context_dim=1024,
        norm_groups=32,
        temporal=TemporalConfig(
            conv_kernels=(3, 5, 7, 9), segment_frames=(8, 4, 2, 1), attention=True, position=False
        ),
        image_stream=ImageStreamConfig(projection="linear", width=1280),
    ),
    vae=VAEConfig(
        in_channels=3,
        latent_channels=4,
        channels=128,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        norm_groups=32,
        scale=0.18215,
    ),
    text=TextConfig(width=1024, heads=16, layers=24, context_length=77, vocab_size=49408, embed_dim=1024),
    vision=VisionConfig(
        image_size=224, patch_size=14, width=1280, layers=32, head_width=80, mlp_ratio=4.0, embed_dim=1024
    ),
    schedule=SD21_SCHEDULE,
)

# The built-in model: the paper's four levels, k_f and r_f at a width that trains on two CPU cores.
# paper: eps prediction; here: v with zero terminal SNR, because v weighs the noisy timesteps, where a
# clip's content is decided, and a small network then learns that content in far fewer samples.
TINY = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=48,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=1,
        attention_levels=(True, True, True, False),
        head_channels=24,
        context_dim=64,
        norm_groups=16,
        temporal=TemporalConfig(
            conv_kernels=(3, 5, 7, 9), segment_frames=(8, 4, 2, 1), attention=True, position=True
        ),
        image_stream=ImageStreamConfig(projection="linear", width=96),
    ),
    vae=VAEConfig(
        in_channels=3,
        latent_channels=4,
        channels=16,
        channel_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        norm_groups=8,
        scale=0.18215,
    ),
    text=TextConfig(width=64, heads=2, layers=3, context_length=77, vocab_size=49408, embed_dim=64),
    vision=VisionConfig(
        image_size=64, patch_size=8, width=96, layers=4, head_width=32, mlp_ratio=4.0, embed_dim=64
    ),
    schedule=ScheduleConfig(
        prediction="v", beta_start=0.00085, beta_end=0.012, num_timesteps=1000, zero_terminal_snr=True
    ),
)

PRESETS = {"paper": PAPER, "tiny": TINY}

PROFILES = {
    "paper": SamplingProfile(
        frames=24, height=320, width=576, fps=8.0, steps=50, sampler="ddim", sigma_schedule="ddim_uniform",
        guidance="joint", guidance_scale=7.5, text_guidance=7.5, image_guidance=2.0, guidance_rescale=0.0,
    ),
    "tiny": SamplingProfile(
        frames=12, height=64, width=64, fps=8.0, steps=10, sampler="dpmpp_2m", sigma_schedule="sgm_uniform",
        guidance="joint", guidance_scale=3.0, text_guidance=3.0, image_guidance=2.0, guidance_rescale=0.0,
    ),
}  # fmt: skip


def to_json(config) -> str:
    """Any config dataclass as JSON; `from_json` gives back an equal object."""
    return json.dumps(dataclasses.asdict(config), indent=None, sort_keys=True)


def from_json(cls, text: str):
    """Read a config of dataclass `cls` strictly.

    Raises:
        ValueError: not JSON, a field unknown, missing or of another type; the sentence names the field.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"expected a {cls.__name__} as JSON, got text that does not parse ({error})."
        ) from error
    return _build(cls, data, cls.__name__)


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
