"""The checkpoint behind Load UniVid: a UniVid file, or Stable Diffusion 2.1 read as an untrained UniVid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...univid.checkpoints import native, stream
from ...univid.checkpoints.inflate import plan
from ...univid.config import ModelConfig, SamplingProfile

UNET = native.PARTS["unet"].prefix
# In Stable Diffusion 2.x this vector tells the two predictions apart: trained on v it spreads wider.
PREDICTION_KEY = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
PREDICTION_SPREAD = 0.09


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds, read part by part ("unet", "vae", "text_encoder", "image_encoder").

    trained: whether its temporal layers are.
    """

    path: Path
    config: ModelConfig
    profile: SamplingProfile
    all_entries: Mapping[str, stream.Entry]
    make: Callable[[str], Tensor]
    trained: bool = True

    def holds(self, part: str) -> bool:
        return getattr(self.config, native.PARTS[part].field) is not None

    def entries(self, part: str) -> dict[str, stream.Entry]:
        """Types and shapes of a part, by the part's own names."""
        prefix = native.PARTS[part].prefix
        return {k.removeprefix(prefix): e for k, e in self.all_entries.items() if k.startswith(prefix)}

    def dtype(self, part: str) -> torch.dtype:
        return next(iter(self.entries(part).values())).dtype

    def read(self, part: str) -> dict[str, Tensor]:
        """A part's tensors by its own names.

        Raises:
            ValueError: weights that are not finite.
        """
        prefix, state = native.PARTS[part].prefix, {}
        for name in self.entries(part):
            state[name] = self.make(prefix + name)
            native.check_finite(state[name], f"{self.path} has nan or infinite weights in {prefix + name}")
        return state


def open_checkpoint(path: Path) -> Weights:
    """Read a checkpoint's header and compare its tensors with its config; no tensor is read yet.

    Raises:
        ValueError: missing, damaged, a pickle, or of another model.
    """
    reader = stream.Reader(path)
    if "format" not in reader.metadata and PREDICTION_KEY in reader.entries:
        return _inflated(path, reader)
    config, profile, _ = native.read_header(reader)
    native.build_meta(reader, config)
    return Weights(path, config, profile, reader.entries, reader.read)


def _inflated(path: Path, reader: stream.Reader) -> Weights:
    spread = reader.read(PREDICTION_KEY).float().std()
    planned = plan(path, prediction="v" if spread > PREDICTION_SPREAD else "eps")
    config, profile, _ = native.parse_header(planned.metadata)
    return Weights(path, config, profile, planned.entries, planned.make, trained=False)
