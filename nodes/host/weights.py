"""The checkpoint behind Load UniVid: a UniVid file, or a foreign one, imported as it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...univid.checkpoints import foreign, native, stream
from ...univid.checkpoints.imports import plan
from ...univid.checkpoints.kinds import is_image_model
from ...univid.config import ModelConfig, SamplingProfile

UNET = native.PARTS["unet"].prefix
# In Stable Diffusion 2.x this vector tells the two predictions apart: trained on v it spreads wider.
PREDICTION_KEY = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
PREDICTION_SPREAD = 0.09
AUTO = "auto"  # let a file's tensors say what it is


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds, read part by part ("unet", "vae", "text_encoder", "image_encoder").

    trained: whether its temporal layers are. source: as it was asked of `open_checkpoint`.
    """

    path: Path
    config: ModelConfig
    profile: SamplingProfile
    all_entries: Mapping[str, stream.Entry]
    make: Callable[[str], Tensor]
    trained: bool = True
    source: str = AUTO

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


def open_checkpoint(path: Path, source: str = AUTO) -> Weights:
    """Read a checkpoint's header and compare its tensors with its config; no tensor is read yet.

    source: of a foreign file, the name of its model where the tensors leave several.

    Raises:
        ValueError: missing, damaged, a pickle with code, of no known model, or of several without a source.
    """
    opened = foreign.open_weights(path)
    if isinstance(opened, stream.Reader) and opened.metadata.get("format") == "univid":
        if source != AUTO:
            raise ValueError(f"{path.name} is a UniVid checkpoint, not {source!r}; set source to {AUTO!r}.")
        config, profile, _ = native.read_header(opened)
        native.build_meta(opened, config)
        return Weights(path, config, profile, opened.entries, opened.read)
    name = None if source == AUTO else source
    planned = plan(path, name=name, prediction=_prediction(opened))
    config, profile, _ = native.parse_header(planned.metadata)
    return Weights(path, config, profile, planned.entries, planned.make, planned.trained, source)


def _prediction(weights: foreign.Weights) -> str | None:
    """What Stable Diffusion 2.x predicts; the importers know it of the others."""
    if PREDICTION_KEY not in weights.entries or not is_image_model(weights.entries):
        return None
    spread = weights.read(PREDICTION_KEY).float().std()
    return "v" if spread > PREDICTION_SPREAD else "eps"
