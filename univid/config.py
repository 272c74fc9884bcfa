"""Architecture and sampling profile as data: frozen dataclasses, which serial.py brings to JSON and back.

A field has no default, so a preset states everything and a checkpoint's header can rebuild the exact model.
Tuples indexed by level run from the finest (f = 1) to the coarsest (f = 8).
"""

from dataclasses import dataclass

from .serial import from_json as from_json  # a config and its JSON are asked for in one place
from .serial import to_json as to_json

TEMPORAL_KINDS = ("univid", "family")


@dataclass(frozen=True)
class PositionConfig:
    """How a frame's place in its clip, 0 = the beginning and 1 = the end, becomes sinusoids.

    The angles are scale * place times frequencies that fall geometrically from 1 towards 1 / period.
    """

    scale: float
    period: float

    def __post_init__(self):
        if self.scale <= 0 or self.period <= 1:
            raise ValueError(
                f"position.scale must be above 0 and position.period above 1, got {self.scale:g} and "
                f"{self.period:g}."
            )


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
    position: PositionConfig | None  # a frame's place scales its text tokens and joins TemAttn's; None = no

    def __post_init__(self):
        if self.kind not in TEMPORAL_KINDS:
            raise ValueError(f"temporal.kind must be among {TEMPORAL_KINDS}, got {self.kind!r}.")
        if self.kind == "univid" and self.input_heads is not None:
            raise ValueError(
                f"temporal.input_heads must be null for kind 'univid', got {self.input_heads}; "
                "take kind 'family'."
            )
        if self.kind == "family" and self.position:
            raise ValueError("temporal.position must be null for kind 'family', got one.")
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


# Numbers that a U-Net may be told beside the timestep, and what each may count. fps: frames a second, or
# ("stride") how many frames of the source lie between two of the clip. noise: of known frames, in thousandths
# of the latents' deviation.
NUMBERS = {"fps": ("fps", "stride"), "noise": ("permille",)}


def _check_numbers(where: str, names: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in NUMBERS]:
        raise ValueError(f"{where} must be among {tuple(NUMBERS)}, got {unknown[0]!r}.")
    if len(set(names)) < len(names):
        raise ValueError(f"{where} must name each number once, got {names}.")


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
    numbers: tuple[str, ...]  # of NUMBERS: each has an embedding, which is added to that of the timestep
    temporal: TemporalConfig
    image_stream: ImageStreamConfig | None

    def __post_init__(self):
        _check_numbers("unet.numbers", self.numbers)
        levels = len(self.channel_mult)
        for name, per_level in (
            ("attention_levels", self.attention_levels),
            ("temporal.conv_kernels", self.temporal.conv_kernels),
            ("temporal.segment_frames", self.temporal.segment_frames),
        ):
            if len(per_level) != levels and (per_level or name == "attention_levels"):
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


BETAS = ("scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class BetaConfig:
    """The variance of the noise that each timestep adds, by the name of its rule.

    "scaled_linear": from `start` to `end`, linear in the square roots (LDM). "squaredcos_cap_v2": what makes
    abar a squared cosine (2102.09672), at most 0.999 a step; without start and end.
    """

    name: str
    start: float | None
    end: float | None

    def __post_init__(self):
        if self.name not in BETAS:
            raise ValueError(f"betas.name must be among {BETAS}, got {self.name!r}.")
        ends = (self.start, self.end)
        if self.name != "scaled_linear":
            if ends != (None, None):
                raise ValueError(f"betas of {self.name} have no start and end, got {ends}.")
        elif None in ends or not 0 < self.start <= self.end < 1:
            raise ValueError(f"betas of scaled_linear must rise from above 0 to below 1, got {ends}.")


MOST_TIMESTEPS = 100_000  # each has an entry in a table; all models known have 1,000


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule that the network was trained on."""

    prediction: str  # "eps", "v" or "x0"
    betas: BetaConfig
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
        if self.num_timesteps > MOST_TIMESTEPS:
            raise ValueError(f"num_timesteps must be at most {MOST_TIMESTEPS:,}, got {self.num_timesteps:,}.")
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


@dataclass(frozen=True)
class NumberInput:
    """What one of the U-Net's `numbers` is told where the user says nothing; unit: what it counts."""

    name: str
    value: float
    unit: str

    def __post_init__(self):
        _check_numbers("inputs.numbers.name", (self.name,))
        if self.unit not in NUMBERS[self.name]:
            raise ValueError(
                f"the unit of {self.name} must be among {NUMBERS[self.name]}, got {self.unit!r}."
            )
        if self.value < 0 or (self.value == 0 and self.name == "fps"):
            raise ValueError(f"{self.name} must be above 0, got {self.value}.")


KNOWN = ("known", "known_blend")  # kinds of `concat` that any known frames go into; see known.py
INPUT_CHOICES = {"null_image": ("off", "grey"), "concat": ("none", "first", "ends", *KNOWN)}


@dataclass(frozen=True)
class InputProfile:
    """What a checkpoint was trained to be given beside text and image tokens.

    numbers: defaults, by name. A U-Net's number without one has to be said by the user, in its first unit.
    null_image: what a clip without picture, and the unconditional branch, shows to the image stream:
        nothing ("off"), or a grey picture at weight 1 ("grey").
    concat: latents joined to the input: none; the picture in every frame ("first"); the picture in the first
        frame, another in the last, zeros between ("ends"); or any known frames and a mask of them (known.py).
    """

    numbers: tuple[NumberInput, ...]
    null_image: str
    concat: str

    def __post_init__(self):
        _check_numbers("inputs.numbers", tuple(number.name for number in self.numbers))
        for name, choices in INPUT_CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be among {choices}, got {getattr(self, name)!r}.")

    def number(self, name: str) -> NumberInput | None:
        """The default of a number; None where there is none."""
        return next((number for number in self.numbers if number.name == name), None)


@dataclass(frozen=True)
class BiasedNoiseProfile:
    """UniVG's biased Gaussian noise (2401.09084, 3.4): the condition's share of a noisy video grows from
    none at the timestep t_m to all at t_n, a whole one, from where sampling starts.
    """

    t_m: float
    t_n: float

    def __post_init__(self):
        if not 0 <= self.t_m < self.t_n:
            raise ValueError(f"biased noise needs 0 <= t_m < t_n, got {self.t_m:g} and {self.t_n:g}.")
        if self.t_n % 1:
            raise ValueError(f"biased noise needs a whole timestep t_n, got {self.t_n:g}; round it.")


@dataclass(frozen=True)
class StartProfile:
    """Where sampling starts.

    timestep: the first of the schedule of steps; None = the last that the network was trained on. What lies
        between stays trained and is not sampled, as where a network with zero terminal SNR knows a sigma of
        4,519 next to one of 16, over which no solver's step is accurate.
    denoise: of a model that refines another's video, which share of these noise levels it goes through, as an
        expert in the lower ones does (Show-1); 1 = it makes videos of its own.
    biased_noise: of a model that turns one video into another; None = plain noise.
    """

    timestep: int | None
    denoise: float
    biased_noise: BiasedNoiseProfile | None

    def __post_init__(self):
        if not 0 < self.denoise <= 1:
            raise ValueError(f"start.denoise must be above 0 and at most 1, got {self.denoise}.")
        if self.biased_noise is not None and (self.timestep is not None or self.denoise < 1):
            raise ValueError(
                "biased noise starts at its own t_n, so start.timestep must be null and start.denoise 1 "
                f"beside it, got {self.timestep} and {self.denoise:g}."
            )

    @property
    def from_video(self) -> bool:
        """Whether sampling starts from a video under noise, and not from noise alone."""
        return self.denoise < 1 or self.biased_noise is not None

    def check_source(self, video: bool, denoise: float = 1.0) -> None:
        """Refuse, by a ValueError, to start without the video that is needed, or from a part of its noise."""
        if self.from_video and not video:
            raise ValueError("this model makes a video from another, got none; give one to start from.")
        if self.biased_noise is not None and denoise != 1:
            raise ValueError(
                f"this model starts at timestep {self.biased_noise.t_n:g} from a whole video, got denoise "
                f"{denoise}; leave it at 1."
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
    start: StartProfile

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {self.eta}.")


def check_start(config: ModelConfig, profile: SamplingProfile) -> None:
    """Refuse a profile that starts where the schedule has no timestep.

    Raises:
        ValueError: as said.
    """
    start, count = profile.start, config.schedule.num_timesteps
    latest = max(start.timestep or 0, start.biased_noise.t_n if start.biased_noise is not None else 0)
    if latest >= count:
        raise ValueError(f"sampling must start at one of the schedule's {count} timesteps, got {latest:g}.")
