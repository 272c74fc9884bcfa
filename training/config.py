"""What a training run is: frozen dataclasses, complete when a recipe returns them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

DTYPES = ("float32", "bfloat16")
DECAYS = ("constant", "linear", "cosine")


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
class Recipe:
    """One run of the loop. Whatever changes its numbers stands here, so `config.json` can guard a resume."""

    name: str
    task: str  # which task of training/stages
    seed: int
    steps: int
    batch: Mapping[str, int]  # samples of one optimizer step, by modality: {"image": 64, "video": 8}
    optim: OptimConfig
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the task needs to know beyond this, JSON values
    dtype: str = "float32"  # autocast of the loss; weights, gradients and moments stay float32
    log_every: int = 1
    save_every: int = 1000
    validate_every: int = 0  # 0 = never
    max_skipped: int = 10  # non-finite steps in a row before the run stops

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {self.dtype!r}.")
        if min(self.steps, self.log_every, self.save_every, self.max_skipped) < 1:
            raise ValueError(
                f"steps, log_every, save_every and max_skipped of {self.name!r} must be at least 1."
            )

    def to_dict(self) -> dict:
        """JSON values only; equal recipes give equal dicts, also after a round trip through a file."""
        return json.loads(json.dumps(asdict(self)))


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
