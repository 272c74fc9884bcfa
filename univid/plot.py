"""Small line plots as pictures, drawn with Pillow."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .sheet import ACCENT, FAINT, INK, PAPER
from .steer import Masks

COLOURS = (ACCENT, "#1864ab", "#2b8a3e", "#862e9c")
GRID, AXIS = "#e4e2da", "#b9b7ae"
SCALE = 3  # drawn this much larger and shrunk, which smooths the lines
TITLE, LABEL, TICK = 15, 12, 11  # font sizes
LINE_WIDTH, DASH = 2.4, 9  # pixels; a line equal to one before is dashed, so that both are seen
MOST_DOTS = 24  # longer lines get no dots at their points
MOST_MASKS = 4  # of masks that change over the frames so many are drawn


def line_plot(
    series: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (512, 256),
    *,
    x_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Lines over equidistant x, as an uint8 picture `[h w 3]`.

    series: {name: values}; a line has a gap where a value is not finite, and a single value is a level line.
    size: width and height in pixels. x_range: x of the first and of the last value; None counts from 1.
    """
    x_low, x_high = x_range or (1, max([1, *map(len, series.values())]))
    finite = [v for values in series.values() for v in values if math.isfinite(v)]
    y_ticks = _ticks(min([0.0, *finite]), max([0.0, *finite]), most=5)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    width, height = size
    canvas = _Canvas(width, height)

    canvas.text(16, 14, title, TITLE, INK, "la")
    _legend(canvas, list(series), width - 18)
    y_names = [_text(tick, y_ticks) for tick in y_ticks]
    left = 24 + max(canvas.length(name, TICK) for name in y_names)
    box = (left, 62, width - 22, height - 46)  # left, top, right, bottom of the plot's area

    def place(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if x_high == x_low else (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    canvas.text(16, 44, y_label, TICK, FAINT, "lm")
    for tick, name in zip(y_ticks, y_names, strict=True):
        y = place(x_low, tick)[1]
        canvas.line([(box[0], y), (box[2], y)], AXIS if tick == 0 else GRID, 1)
        canvas.text(box[0] - 8, y, name, TICK, FAINT, "rm")
    x_ticks = _ticks_between(x_low, x_high, whole=x_range is None)
    for tick in x_ticks:
        x = place(tick, y_low)[0]
        canvas.line([(x, box[3]), (x, box[3] + 4)], AXIS, 1)
        canvas.text(x, box[3] + 8, _text(tick, x_ticks), TICK, FAINT, "ma")
    canvas.text((box[0] + box[2]) / 2, height - 10, x_label, TICK, FAINT, "ms")

    for index, values in enumerate(series.values()):
        colour = COLOURS[index % len(COLOURS)]
        hidden = list(values) in [list(before) for before in list(series.values())[:index]]
        if len(values) == 1:
            y = place(x_low, values[0])[1]
            runs = [[(box[0], y), (box[2], y)]] if math.isfinite(values[0]) else []
        else:
            step = (x_high - x_low) / (len(values) - 1)
            runs = _runs([(x_low + i * step, value) for i, value in enumerate(values)])
            runs = [[place(x, y) for x, y in run] for run in runs]
        for run in runs:
            for piece in _dashes(run) if hidden else [run]:
                canvas.line(piece, colour, LINE_WIDTH)
            if 1 < len(values) <= MOST_DOTS and not hidden:
                for point in run:
                    canvas.dot(point, colour, LINE_WIDTH)
    return canvas.picture()


def weights_plot(weights: Tensor, masks: Masks = Masks(), height: int = 256) -> np.ndarray:  # noqa: B008
    """The modality weights `[1 | t, s, 2]` as an uint8 picture `[h w 3]`, and beside them the masks.

    Where they change over frames and over steps there are two plots side by side, and each shows the largest
    weight along the other's axis. White in a mask is the full weight; of one a frame some
    are shown, the first and the last among them.
    """
    t, points, _ = weights.shape
    plots = []
    if t > 1:
        lines = _lines(weights.amax(1))
        plots.append(line_plot(lines, "Weights over the frames", "frame", "weight", (512, height)))
    if points > 1 or t == 1:
        lines = _lines(weights.amax(0))
        title = "Weights over the steps" if points > 1 else "Weights, the same for all frames and steps"
        x_label = "noise levels passed: 0 = all noise, 1 = none left"
        plots.append(line_plot(lines, title, x_label, "weight", (512, height), x_range=(0, 1)))
    for name, mask, colour in (("text", masks.text, COLOURS[0]), ("image", masks.image, COLOURS[1])):
        if mask is not None:
            plots.append(_mask_plot(f"Where the {name} counts", mask, colour, height))
    return np.concatenate(plots, axis=1)


def _mask_plot(title: str, mask: Tensor, colour: str, side: int) -> np.ndarray:
    canvas = _Canvas(side, side)
    canvas.text(16, 14, title, TITLE, INK, "la")
    count = min(len(mask), MOST_MASKS)
    shown = [round(i * (len(mask) - 1) / max(count - 1, 1)) for i in range(count)]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cell_w, cell_h = (side - 32) / columns, (side - 60) / rows
    label = 16 if count > 1 else 0
    most = max(1.0, mask.max().item())
    for index, frame in enumerate(shown):
        h, w = mask.shape[-2:]
        scale = min((cell_w - 8) / w, (cell_h - 8 - label) / h)
        size = tuple(max(1, round(scale * length * SCALE)) for length in (w, h))
        grey = Image.fromarray((mask[frame].float() / most * 255).round().byte().cpu().numpy())
        row, column = divmod(index, columns)
        left = 16 + column * cell_w + (cell_w - size[0] / SCALE) / 2
        top = 44 + row * cell_h + label
        if label:
            canvas.text(16 + (column + 0.5) * cell_w, top - 4, f"frame {frame + 1}", TICK, FAINT, "ms")
        canvas.picture_at(grey.resize(size, Image.Resampling.BOX), left, top, colour)
    return canvas.picture()


def _legend(canvas: "_Canvas", names: list[str], right: float) -> None:
    for index, name in reversed(list(enumerate(names))):
        canvas.text(right, 22, name, LABEL, INK, "rm")
        right -= canvas.length(name, LABEL) + 6
        canvas.line([(right - 16, 22), (right, 22)], COLOURS[index % len(COLOURS)], 3)
        right -= 32


def _lines(weights: Tensor) -> dict[str, list[float]]:
    return {"text": weights[:, 0].tolist(), "image": weights[:, 1].tolist()}


class _Canvas:
    """A picture that is drawn at SCALE times its size; all coordinates are of the final size."""

    def __init__(self, width: int, height: int):
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: list[tuple[float, float]], colour: str, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def dot(self, point: tuple[float, float], colour: str, radius: float) -> None:
        self.draw.circle([v * SCALE for v in point], radius * SCALE, fill=colour)

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        self.draw.text(
            (x * SCALE, y * SCALE),
            text,
            font=ImageFont.load_default(size * SCALE),
            fill=colour,
            anchor=anchor,
        )

    def picture_at(self, image: Image.Image, left: float, top: float, colour: str) -> None:
        """A picture, already at SCALE times its size, with a line around it."""
        corner = round(left * SCALE), round(top * SCALE)
        self.image.paste(image, corner)
        far = [start + length for start, length in zip(corner, image.size, strict=True)]
        self.draw.rectangle([*corner, *far], outline=colour, width=SCALE)

    def length(self, text: str, size: int) -> float:
        return self.draw.textlength(text, font=ImageFont.load_default(size * SCALE)) / SCALE

    def picture(self) -> np.ndarray:
        return np.array(self.image.resize(self.size, Image.Resampling.BOX))


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches of points with finite y."""
    runs = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _dashes(run: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Every other DASH pixels of a line."""
    points = np.array(run)
    along = np.concatenate([[0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    pieces = []
    for start in np.arange(0, along[-1], 2 * DASH):
        end = min(start + DASH, along[-1])
        stops = [start, *along[(along > start) & (along < end)], end]
        pieces.append([(np.interp(s, along, points[:, 0]), np.interp(s, along, points[:, 1])) for s in stops])
    return pieces


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers, evenly spaced, from `low` or below to `high` or above."""
    if low == high:
        high = low + 1
    step = _round_step((high - low) / (most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _ticks_between(low: float, high: float, whole: bool) -> list[float]:
    """Round numbers from `low` to `high`; if `whole`, counted ones, with both ends."""
    if low == high:
        return [low]
    step = _round_step((high - low) / 6)
    if not whole:
        return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    step = max(1, round(step))
    inner = [i for i in range(step, int(high), step) if low < i <= high - step / 2]
    return [low, *inner, high]


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * f for f in (1, 2, 5, 10) if power * f >= step * (1 - 1e-9))


def _text(tick: float, ticks: list[float]) -> str:
    """A tick with the digits that tell the ticks apart."""
    step = min((abs(b - a) for a, b in zip(ticks, ticks[1:], strict=False)), default=1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{tick:.{digits}f}" if abs(tick) < 1e5 else f"{tick:g}"
