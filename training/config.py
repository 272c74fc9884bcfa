"""What a training run is: frozen dataclasses, complete when a recipe returns them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from univid.messages import shown

DTYPES = ("float32", "bfloat16")
DECAYS = ("constant", "linear", "cosine")
PARALLEL = ("ddp", "fsdp")
LONGEST_NAME = 150
SEEDS = 2**63
MOST_SAMPLES = 1_000_000  # of one modality in a step


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its learning rate over the steps, and the moving average of the weights."""

    lr: float  # peak, reached after the warm-up
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay: str = "cosine"  # "constant", or to zero at the last step: "linear", "cosine"
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self):
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {DECAYS}, got {self.decay!r}.")
        if self.warmup_steps < 0 or self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                "warmup_steps and weight_decay must be at least 0 and betas in [0, 1), got "
                f"{self.warmup_steps}, {self.weight_decay} and {self.betas}."
            )
        if not (self.lr > 0 and self.clip_norm > 0 and 0 <= self.ema_decay < 1):
            raise ValueError(
                f"lr and clip_norm must be above 0 and ema_decay in [0, 1), "
                f"got {self.lr}, {self.clip_norm} and {self.ema_decay}."
            )

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) of `steps`, a pure function: a resume restores no scheduler."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        if self.decay == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (1 - progress) if self.decay == "linear" else self.lr

    def ema_decay_at(self, step: int) -> float:
        """The moving average's decay, with a short ramp: early weights are forgotten sooner."""
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class EngineConfig:
    """How a step is spread over processes and computed: its speed and memory, and no more than its rounding.

    So a run may be continued with another engine, on more or fewer processes.
    """

    parallel: str = "ddp"  # "ddp": every process has the whole network; "fsdp" (FSDP2): a part of each layer
    micro_batch: Mapping[str, int] = field(default_factory=dict)  # samples of one pass on one process,
    # by modality; a modality left out goes in one pass
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, a third slower
    compile: bool = False  # torch.compile of each block

    def __post_init__(self):
        if self.parallel not in PARALLEL:
            raise ValueError(f"parallel must be one of {PARALLEL}, got {self.parallel!r}.")
        if any(size < 1 for size in self.micro_batch.values()):
            raise ValueError(f"micro_batch must be at least 1, got {dict(self.micro_batch)}.")


@dataclass(frozen=True)
class LogsConfig:
    """After how many steps a run writes what: 0 = never. None of it changes what is computed."""

    every: int = 1  # a row of metrics.jsonl
    save_every: int = 1000  # a state to continue from; always at the end
    keep: int = 2  # states
    validate_every: int = 0
    sample_every: int = 0  # clips or pictures that the network makes
    tensorboard: bool = False

    def __post_init__(self):
        if min(self.every, self.save_every, self.validate_every, self.sample_every) < 0 or self.keep < 1:
            raise ValueError(f"expected intervals of at least 0 and keep of at least 1, got {self}.")


@dataclass(frozen=True)
class Options:
    """What a task needs to know beyond the recipe's own fields: a class for each task.

    task: its name in `config.json`.
    """

    task: ClassVar[str] = ""


@dataclass(frozen=True)
class Recipe:
    """One run of the loop. Whatever changes its numbers stands here, so `config.json` can guard a resume.

    Which task it trains is said by the type of its options.
    """

    name: str
    seed: int
    steps: int
    batch: Mapping[str, int]  # samples of one optimizer step, by modality: {"image": 64, "video": 8}
    optim: OptimConfig
    options: Options
    engine: EngineConfig = field(default_factory=EngineConfig)
    dtype: str = "float32"  # autocast of the loss; weights, gradients and moments stay float32
    logs: LogsConfig = field(default_factory=LogsConfig)
    max_skipped: int = 10  # non-finite steps in a row before the run stops

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {self.dtype!r}.")
        if (
            self.name in ("", ".", "..")
            or {"/", "\\", "\0"} & set(self.name)
            or len(self.name) > LONGEST_NAME
        ):
            raise ValueError(
                f"name must be a folder's, of at most {LONGEST_NAME} characters, got {shown(self.name)!r}."
            )
        if min(self.steps, self.max_skipped) < 1:
            raise ValueError(f"steps and max_skipped of {self.name!r} must be at least 1.")
        if not -SEEDS <= self.seed < SEEDS:
            raise ValueError(f"seed must be a number of 64 bits, got {shown(self.seed)}.")
        if any(not 0 <= size <= MOST_SAMPLES for size in self.batch.values()):
            raise ValueError(
                f"batch must be 0 to {MOST_SAMPLES:,} samples a modality, got {shown(dict(self.batch))}."
            )
        if bad := sorted(endless_fields(asdict(self))):
            raise ValueError(f"expected finite numbers, got others for {shown(', '.join(bad))}; change them.")

    def to_dict(self) -> dict:
        """JSON values only; equal recipes give equal dicts, also after a round trip through a file."""
        said = {"task": self.options.task, "options": asdict(self.options) or None}
        return json.loads(json.dumps(asdict(self) | said))


def endless_fields(values: Any, name: str = "") -> list[str]:
    """Dotted names of the fields that are nan or infinite."""
    if isinstance(values, float):
        return [] if math.isfinite(values) else [name]
    if isinstance(values, Mapping):
        inner = values.items()
    else:
        inner = enumerate(values) if isinstance(values, list | tuple) else ()
    return [bad for key, value in inner for bad in endless_fields(value, f"{name}.{key}".lstrip("."))]


def differing_fields(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two resolved recipes differ."""
    names = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
