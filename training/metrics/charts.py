"""Curves as pictures: the trade-off of text and picture, and a figure along a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from univid.files.output import new_file
from univid.messages import shown
from univid.sheet import ACCENT, FAINT, INK, PAPER

BLUE, GREEN = "#1864ab", "#2b8a3e"
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e2da",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "font.size": 10,
}
PLATE = {"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.8}  # behind words on lines
MOST_ROWS = 3  # of example frames
MOST_TICKS = 8  # states that are named one by one


def tradeoff(found: Mapping, examples: Sequence[Sequence[np.ndarray]], title: str, path: Path) -> None:
    """Draw what `tradeoff.measure` gives: the curve, and below it frames of some of its clips."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    examples = examples[:MOST_ROWS]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.8 + 1.5 * len(examples)), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(4.8, 1.5 * len(examples)))
        _curve(above.subplots(), found, title)
        weights = [f"text {p['text_weight']:g}\npicture {p['image_weight']:g}" for p in found["points"]]
        cells = below.subplots(len(examples), len(examples[0]), squeeze=False)
        for cell, name in zip(cells[0], ["the picture", *weights], strict=True):
            cell.set_title(name, fontsize=8.5, color=FAINT, pad=16)
        for line, row, frames in zip(cells, found["rows"], examples, strict=False):
            for cell, frame in zip(line, frames, strict=True):
                cell.imshow(frame)
                cell.set_axis_off()
            prompt = line[0].annotate(
                shown(row["prompt"], 110), (0, 1), xytext=(0, 4), xycoords="axes fraction",
                textcoords="offset points", fontsize=8.5,
            )  # fmt: skip
            prompt.set_in_layout(False)  # it may be longer than the picture is wide
        below.get_layout_engine().set(hspace=0.12)
        _save(figure, path)


def _curve(axis, found: Mapping, title: str) -> None:
    points, unrelated = found["points"], found["unrelated"]
    x, y = ([point[of]["value"] for point in points] for of in ("picture", "text"))
    xerr, yerr = (np.transpose([_reach(point[of]) for point in points]) for of in ("picture", "text"))
    axis.errorbar(
        x, y, xerr=xerr, yerr=yerr, color=ACCENT, ecolor=FAINT, elinewidth=0.8, linewidth=1.8, marker="o",
    )  # fmt: skip
    for point, place in zip(points, zip(x, y, strict=True), strict=True):
        label = f"text {point['text_weight']:g}, picture {point['image_weight']:g}"
        axis.annotate(label, place, xytext=(7, 7), textcoords="offset points", fontsize=9, bbox=PLATE)
    for value, line in ((unrelated["picture"], axis.axvline), (unrelated["text"], axis.axhline)):
        if value is not None:
            line(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    if None not in unrelated.values():
        corner = (unrelated["picture"], unrelated["text"])
        axis.annotate("unrelated", corner, xytext=(5, 5), textcoords="offset points", fontsize=8, color=FAINT)
    axis.margins(0.16)
    axis.set_xlabel(f"agrees with the picture (cosine; {found['clip'].partition(', sha256')[0]})")
    axis.set_ylabel("agrees with the text")
    axis.set_title(title, loc="left", fontsize=11)


def _reach(figure: Mapping) -> tuple[float, float]:
    """How far the interval goes below and above the value."""
    value = figure["value"]
    low, high = (value if figure[end] is None else figure[end] for end in ("low", "high"))
    return max(0.0, value - low), max(0.0, high - value)


def _save(figure, path: Path) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def progress(figures: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draw what `progress.judge` gives: a panel for each metric, over the steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator

    from .progress import TITLES

    states = [(point["state"], point["step"]) for point in next(iter(figures.values()))]
    stepped = all(step is not None for _, step in states)
    x = [step if stepped else place for place, (_, step) in enumerate(states, start=1)]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 0.7 + 2.1 * len(figures)), layout="constrained")
        panels = figure.subplots(len(figures), 1, squeeze=False, sharex=True)[:, 0]
        for panel, (name, points) in zip(panels, figures.items(), strict=True):
            reach = np.transpose([_reach(point) for point in points])
            values = [point["value"] for point in points]
            panel.errorbar(x, values, yerr=reach, color=ACCENT, ecolor=FAINT, elinewidth=0.8, marker="o")
            panel.set_title(TITLES.get(name, name), loc="left", fontsize=10)
        if stepped:
            few = len(x) <= MOST_TICKS
            panels[-1].xaxis.set_major_locator(FixedLocator(x) if few else MaxNLocator(integer=True))
            panels[-1].set_xlabel("training step")
        else:
            panels[-1].set_xticks(x, [shown(name, 24) for name, _ in states])
        _save(figure, path)
