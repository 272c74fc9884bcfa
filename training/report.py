"""The run's own record: metrics.jsonl, and a picture of it."""

import json
import math
from pathlib import Path

from .state import atomic


class Metrics:
    """`metrics.jsonl`: one row a logged step. A resumed run's file equals an uninterrupted one's.

    folder: the run's folder. step: the step that the run continues from; later rows are dropped.
    tensorboard: also write for TensorBoard, below `tensorboard/`.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False):
        path = folder / "metrics.jsonl"
        kept = [row for row in read(path) if row["step"] <= step]
        with atomic(path) as temporary:
            temporary.write_text("".join(map(_line, kept)))
        self.file = open(path, "a", buffering=1)  # by line: a kill loses no row that a state was saved after

        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, row: dict) -> None:
        self.file.write(_line(row))
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, row["step"])

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def read(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out, a missing file is empty."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def draw(folder: Path) -> None:
    """Draw `loss.png` from metrics.jsonl: losses on top, one panel for each validation figure below."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = read(folder / "metrics.jsonl")
    names = {name for row in rows for name in row}
    losses = sorted(name for name in names if name == "loss" or name.endswith("/loss"))
    valid = sorted(name for name in names if name.startswith("valid/"))
    if not losses:
        return
    figure = Figure(figsize=(8, 4 + 2 * len(valid)), layout="constrained")
    ratios = [2] + [1] * len(valid)
    panels = figure.subplots(1 + len(valid), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for name in losses:
        steps, values = _series(rows, name)
        (line,) = panels[0].plot(steps, values, alpha=0.25, linewidth=0.7)
        panels[0].plot(steps, smooth(values), color=line.get_color(), label=name)
    if all(value > 0 for name in losses for value in _series(rows, name)[1]):
        panels[0].set_yscale("log")
    panels[0].legend()
    for panel, name in zip(panels[1:], valid, strict=True):
        panel.plot(*_series(rows, name), marker=".")
        panel.set_ylabel(name.removeprefix("valid/"))
    panels[-1].set_xlabel("step")
    with atomic(folder / "loss.png") as temporary:
        figure.savefig(temporary, dpi=100)


def _line(row: dict) -> str:
    # JSON has no nan: a value that is not finite becomes null.
    return json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()}) + "\n"


def _series(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about 2 % of the curve, without the bias of its start."""
    keep = 1 - 1 / max(1.0, 0.02 * len(values))
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed
