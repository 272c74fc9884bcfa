"""What recipes may train: the presets, and the built-in network with a part taken away (ablation)."""

from dataclasses import replace

from univid.config import ModelConfig, TemporalConfig
from univid.messages import shown
from univid.presets import PRESETS, TINY


def _with(temporal: TemporalConfig) -> ModelConfig:
    return replace(TINY, unet=replace(TINY.unet, temporal=temporal))


PYRAMID = TINY.unet.temporal
ABLATIONS = {
    "full": TINY,
    "without PSTAttn": _with(replace(PYRAMID, segment_frames=())),
    # As many reference frames and taps at every level as the pyramid has in the middle of its range.
    "without the pyramid": _with(replace(PYRAMID, conv_kernels=(5, 5, 5, 5), segment_frames=(4, 4, 4, 4))),
    "temporal attention only": _with(replace(PYRAMID, conv_kernels=(), segment_frames=())),
}
CONFIGS = PRESETS | ABLATIONS


def config_of(preset: str) -> ModelConfig:
    """The model of a preset or of a row of the ablation.

    Raises:
        ValueError: there is none of that name.
    """
    if preset not in CONFIGS:
        raise ValueError(f"preset must be one of {', '.join(CONFIGS)}, got {shown(preset)!r}.")
    return CONFIGS[preset]
