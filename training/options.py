"""What training on real data needs to know beyond a recipe's own fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from univid.config import INPUT_CHOICES, BiasedNoiseProfile
from univid.dtypes import DTYPES

from .config import Options
from .data.config import DataConfig
from .lora import LoraConfig

MOST_SHIFT = 1000.0  # of timesteps; there half of them are the last one
MOST_SAMPLES = 10_000  # of validation, or clips that are drawn


def check_shift(name: str, shift: Mapping[str, float]) -> None:
    """Refuse shifts of timesteps, by modality, with which nothing is learnt."""
    if any(not 0 < value <= MOST_SHIFT for value in shift.values()):
        raise ValueError(f"{name} must be above 0 and at most {MOST_SHIFT:g}, got {dict(shift)}.")


PARTS = ("all", "spatial", "temporal", "temporal-attention")  # of a network; see stages/parts.py
STAGES = (
    "t2v", "adapters", "adapters_kv", "joint", "animate", "known", "upscale", "full", "lora", "distill",
)  # fmt: skip
FROZEN_DTYPES = tuple(DTYPES.values())


@dataclass(frozen=True)
class DistillOptions:
    """Of stage "distill": what the network learns from itself; see stages/distill.py."""

    intervals: int = 40  # steps of the teacher from noise to clip
    guidance: float | None = None  # of the teacher, by text and picture at once; none = the base's own
    steps: int = 4  # that the result is sampled in

    def __post_init__(self):
        if not 1 <= self.steps <= self.intervals:
            raise ValueError(
                f"noise.distill.steps must be from 1 to intervals, got {self.steps} and {self.intervals}."
            )
        if self.guidance is not None and self.guidance < 0:
            raise ValueError(f"noise.distill.guidance must be at least 0, got {self.guidance}.")


@dataclass(frozen=True)
class NoiseOptions:
    """How much noise a sample gets, of what kind, and how the error on it counts."""

    offset: float = 0.0  # strength of noise that a whole channel of a clip has in common (UniVG: 0.1)
    # of timesteps, by modality; above 1: towards noise
    shift: Mapping[str, float] = field(default_factory=dict)
    min_snr: bool = False  # weigh timesteps by min(SNR, 5) (2303.09556) instead of all alike
    # of an expert (Show-1: 0 900) the first timestep that is drawn, and where they end; none given = all
    timesteps: tuple[int, int] | None = None
    # towards the video that the network is shown (UniVG, 3.4), at timesteps below t_n; none = the base's
    biased: BiasedNoiseProfile | None = None
    distill: DistillOptions | None = None  # of stage "distill": against which teacher the error counts

    def __post_init__(self):
        if self.distill and (self.offset or self.min_snr or self.timesteps or self.biased):
            raise ValueError(
                "noise.distill has a noise and a loss of its own, got noise.offset, min_snr, timesteps or "
                "biased too; leave these out."
            )
        if self.offset < 0:
            raise ValueError(f"noise.offset must be at least 0, got {self.offset}.")
        check_shift("noise.shift", self.shift)
        if self.timesteps is not None and not 0 <= self.timesteps[0] < self.timesteps[1]:
            raise ValueError(
                "noise.timesteps must be a first one from 0 on and a larger end, got "
                f"{self.timesteps[0]} and {self.timesteps[1]}."
            )


PATTERNS = ("none", "first", "ends", "start", "every")  # of known frames; see stages/known.py


@dataclass(frozen=True)
class JoinedOptions:
    """Latents that join the network's input; a base that takes none gets weights for them, of zero.

    concat: their kind, as of a sampling profile.
    """

    concat: str
    # of known frames: how often each pattern is shown: "none"; the "first" frame; both "ends"; the "start",
    # of any length; "every" second one, or third, and so on
    patterns: Mapping[str, float] = field(
        default_factory=lambda: {"none": 0.1, "first": 0.25, "ends": 0.15, "start": 0.25, "every": 0.25}
    )
    noise: float = 0.0  # of known frames the most, in their latents' deviations; the network is told how much

    def __post_init__(self):
        kinds = INPUT_CHOICES["concat"][1:]
        if self.concat not in kinds:
            raise ValueError(f"joined.concat must be one of {', '.join(kinds)}, got {self.concat!r}.")
        if unknown := sorted(set(self.patterns) - set(PATTERNS)):
            raise ValueError(f"joined.patterns are {', '.join(PATTERNS)}, got {', '.join(unknown)}.")
        shares = self.patterns.values()
        if min(shares, default=0) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"the shares of joined.patterns must be at least 0 and add up to 1, got {[*shares]}."
            )
        if not 0 <= self.noise <= 1:
            raise ValueError(f"joined.noise must be from 0 to 1, got {self.noise}.")


@dataclass(frozen=True)
class SampleOptions:
    """What a run is judged by: the samples that it validates on, and the clips that it draws of itself every
    `logs.sample_every` steps, always from the same noise.
    """

    prompts: tuple[str, ...] = ()  # none = captions of the data
    pictures: tuple[str, ...] = ()  # files, one for each prompt; none = from text alone
    count: int = 2  # of captions of the data
    steps: int | None = None  # of the sampler; none given = what the base asks for
    seed: int = 0
    validation: int = 8  # samples of each modality

    def __post_init__(self):
        if not 1 <= self.validation <= MOST_SAMPLES:
            raise ValueError(f"samples.validation must be from 1 to {MOST_SAMPLES:,}, got {self.validation}.")
        if not 1 <= self.count <= MOST_SAMPLES or (self.steps is not None and self.steps < 1):
            raise ValueError(
                f"samples.count must be from 1 to {MOST_SAMPLES:,} and samples.steps at least 1, got "
                f"{self.count} and {self.steps}."
            )
        if self.pictures and len(self.pictures) != len(self.prompts):
            raise ValueError(
                f"expected one of samples.pictures for each of samples.prompts, got {len(self.pictures)} "
                f"pictures and {len(self.prompts)} prompts."
            )


@dataclass(frozen=True)
class DenoiseOptions(Options):
    """The U-Net on pictures, single frames of clips, and clips: raw, or prepared as latents and tokens."""

    task = "denoise"
    # the paper's "t2v", "adapters" ("adapters_kv": of these K_v, V_v and the image projection alone) and
    # "joint"; of the cascade "animate", "known" and "upscale"; finetuning: "full", "lora"; or "distill"
    stage: str
    data: DataConfig
    base: str  # a checkpoint: a file, or "built-in"; a preset's name ("paper", "tiny") = random weights
    start: str | None = None  # the run whose network learns on; none = the base's
    parts: str | None = None  # one of PARTS: of what the stage trains these alone; none = all
    loss_weights: Mapping[str, float] = field(default_factory=dict)  # by modality; 1 where nothing is said
    # shares of samples that show "none", "text", "image" and "both"; nothing = those of the stage
    modes: Mapping[str, float] = field(default_factory=dict)
    noise: NoiseOptions = NoiseOptions()
    joined: JoinedOptions | None = None  # none = what the base takes
    lora: LoraConfig | None = None  # of stage "lora", and of "distill" where it trains one
    frozen_dtype: str = "float32"  # of autoencoder and towers, and of the network beside a LoRA
    samples: SampleOptions = SampleOptions()

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {STAGES}, got {self.stage!r}.")
        if self.parts not in (None, *PARTS):
            raise ValueError(f"parts must be one of {', '.join(PARTS)}, got {self.parts!r}.")
        if self.frozen_dtype not in FROZEN_DTYPES:
            raise ValueError(f"frozen_dtype must be one of {FROZEN_DTYPES}, got {self.frozen_dtype!r}.")
        if (self.stage == "lora") != (self.lora is not None) and self.stage != "distill":
            raise ValueError(
                f'expected a LoRA with stage "lora" and with no other but "distill", got stage '
                f"{self.stage!r} and lora {self.lora}."
            )
        if (self.stage == "distill") != (self.noise.distill is not None):
            raise ValueError(
                'expected noise.distill with stage "distill" and with no other, got stage '
                f"{self.stage!r} and noise.distill {self.noise.distill}."
            )
        if any(weight < 0 for weight in self.loss_weights.values()):
            raise ValueError(f"loss_weights must be at least 0, got {dict(self.loss_weights)}.")
