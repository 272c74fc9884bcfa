"""The run's own record: metrics.jsonl, a picture of it, and the line on the terminal.

None of it is state: whatever is wrong with it, the run goes on.
"""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from univid.files.output import new_file
from univid.messages import shown

log = logging.getLogger(__name__)


class Metrics:
    """`metrics.jsonl`: one row a logged step. A resumed run's file equals an uninterrupted one's.

    folder: the run's folder. step: the step that the run continues from; later rows are dropped, and what is
    no row. tensorboard: also write for TensorBoard, below `tensorboard/`.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False):
        self.file = self.board = None
        self.said: set[str] = set()
        path = folder / "metrics.jsonl"
        with self._spared(path):
            kept = [row for row in read(path) if row["step"] <= step]
            with new_file(path) as temporary:
                temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
            # by line: a kill loses no row that a state was saved after
            self.file = open(path, "a", buffering=1, encoding="utf-8")
        with self._spared(folder / "tensorboard"):
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, row: dict) -> None:
        with self._spared("metrics.jsonl"):
            if self.file is not None:
                self.file.write(_line(row))
        with self._spared("tensorboard"):
            if self.board is not None:
                for name, value in row.items():
                    self.board.add_scalar(name, value, row["step"])

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        for name, written in (("metrics.jsonl", self.file), ("tensorboard", self.board)):
            with self._spared(name):
                if written is not None:
                    written.close()

    @contextlib.contextmanager
    def _spared(self, what: Path | str) -> Iterator[None]:
        """A full or protected disk costs rows, which is said once, and not the run."""
        try:
            yield
        except (OSError, ValueError) as error:
            name = Path(what).name
            if name not in self.said:
                self.said.add(name)
                log.warning("%s; the run goes on without it", _reason(what, error))


def _reason(what: Path | str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{shown(what)} cannot be written ({error.strerror or error})"
    return str(error).rpartition(";")[0] or str(error)  # without the advice to name another output


def read(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; of a missing file none.

    What is no row is left out: a last line that a kill cut short, foreign words, bytes that are no text.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return row if all(value is None or isinstance(value, int | float) for value in row.values()) else None


def draw(folder: Path) -> None:
    """Draw `loss.png` from metrics.jsonl: losses on top, one panel for each validation figure below."""
    try:
        _draw(folder)
    except ImportError:
        return
    except Exception as error:  # whatever a picture meets, a number too large for its axis or a full disk
        log.warning("loss.png was not drawn: %s", error)


def _draw(folder: Path) -> None:
    from matplotlib.figure import Figure

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
    with new_file(folder / "loss.png") as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _line(row: dict) -> str:
    # JSON has no nan: a value that is not finite becomes null, and stays so when a run goes on.
    finite = {k: v if v is not None and -math.inf < v < math.inf else None for k, v in row.items()}
    return json.dumps(finite) + "\n"


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


def bar(name: str, step: int, steps: int, shown: bool) -> tqdm:
    """The line on the terminal. Where that is gone, a closed window or a pipe's dead end, it ends alone."""
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file wants few lines
    return tqdm(
        total=steps, initial=step, desc=name, disable=not shown, mininterval=interval, file=_Line(sys.stderr)
    )


class _Line:
    """A stream to which writing never fails."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the second of a closed one
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()
