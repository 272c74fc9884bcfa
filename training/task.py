"""The contract between the loop and what it trains."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class MicroBatch(NamedTuple):
    """One forward and backward pass of a step."""

    name: str  # modality: "image", "video"; prefixes its metrics
    weight: float  # the step's loss is the sum of weight * loss; 0 = not run at all
    batch: Any  # whatever the task's `loss` takes


class Task(Protocol):
    """One stage of training. Everything it does at a step is a pure function of the step's number.

    module: what is trained. Its state dict is saved, and averaged into the EMA. A task that reads from disks
    also has `evidence`: words by kind that tell what it reads from anything else, see `folder.claimed`.
    """

    module: nn.Module

    def parameter_groups(self) -> list[dict]:
        """Optimizer groups: {"name", "params"} and, where they differ, "weight_decay" and "lr_scale"."""

    def micro_batches(self, step: int) -> Iterable[MicroBatch]:
        """The micro-batches of step `step` (from 0), in order; their gradients add up.

        A parameter that none of them reaches has no gradient and stays as it is: its weight, its optimizer
        state and its EMA. Equal halves of a batch with weight 0.5 each give the whole batch's gradient.
        """

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss, a scalar with its graph, and detached scalar metrics.

        The batch comes as `micro_batches` made it; bringing it to the module's device is done here.
        """

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures of merit of `module`, which has the averaged weights and is in eval mode, under no_grad."""

    def draw_samples(self, module: nn.Module, folder: Path, step: int) -> None:
        """Write pictures or clips of what `module` makes, likewise. Every process calls, the first writes.

        Needed by recipes whose `logs.sample_every` is above 0.
        """


def parameter_groups(module: nn.Module) -> list[dict]:
    """What is trained of a module as AdamW's groups: matrices decay, biases, norms and scales do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"name": "matrices", "params": [p for p in trained if p.dim() > 1]},
        {"name": "others", "params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
