"""Shares with their intervals, and the tables of an evaluation in a README."""

from collections.abc import Mapping, Sequence

import numpy as np

CHANGE = "change between neighbours"
BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"
Z = 1.959964  # 95 % of a normal distribution lie within

COLUMNS = {
    "text_color": "colour",
    "text_shape": "shape",
    "text_background": "background",
    "text_motion": "motion of the text",
    "text_all": "all four",
    "text_content": "agrees with the text",
    "picture_color": "colour",
    "picture_shape": "shape",
    "picture_background": "background",
    "picture_content": "agrees with the picture",
    "both": "picture and motion",
    "moves": "moves",
    "near": "position",
    "steadiness": "consistency",
    "change": CHANGE,
    "flicker": "flicker",
    "customised": "motion of the one clip",
}
LEVELS = ("change", "flicker")  # columns in levels of 0 to 255; the others are in percent
LONG = 32  # frames of the ablation's second half
COLUMNS |= {f"{name}_{LONG}": f"{COLUMNS[name]}, {LONG} frames" for name in ("steadiness", "text_motion")}
TABLES = {  # group: (what the rows are, columns)
    "t2v": (
        "text to video",
        (
            "text_color",
            "text_shape",
            "text_background",
            "text_motion",
            "text_all",
            "steadiness",
            "change",
            "flicker",
        ),
    ),
    "picture": (
        "with a picture",
        (
            "picture_color",
            "picture_shape",
            "picture_background",
            "text_motion",
            "both",
            "moves",
            "near",
            "steadiness",
            "change",
            "flicker",
        ),
    ),
    "steering": ("text and picture in conflict", ("text_content", "picture_content", "text_motion", "moves")),
    "lengths": (
        "clips of other lengths",
        ("steadiness", "text_motion", "moves", "change", "flicker"),
    ),
    "ablation": (
        "one equal, shorter budget",
        ("steadiness", "text_motion", f"steadiness_{LONG}", f"text_motion_{LONG}"),
    ),
}
LEGEND = """In percent but for the change, with 95 % intervals (Wilson's, and the normal one for consistency).
A clip in which the scorer finds nothing counts as wrong. Position: in some frame within {near} sides of the
picture's. Agrees: colour, shape and background at once. Consistency: share of neighbouring frames that agree
in colour and shape and lie on one steady track. Change between neighbours: the mean absolute difference of
two neighbouring frames where it is largest in a clip, in levels of 0 to 255, the median over clips."""
FLICKER = """Flicker: how far patches, an eighth of the side each, are from the middle of the frames before
and after, in levels, the median over clips; clips as they are drawn have {drawn_flicker:.2f}."""


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Share of hits and its 95 % interval after Wilson (1927), all 0..1."""
    n, p = len(hits), float(np.mean(hits))
    center = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (p * (1 - p) / n + Z**2 / (4 * n**2)) ** 0.5
    return {"value": p, "low": max(0.0, center - half), "high": min(1.0, center + half)}


def mean(values: Sequence[float]) -> dict[str, float]:
    """Mean of values in 0..1 and its normal 95 % interval."""
    found = unbounded_mean(values)
    return found | {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}


def unbounded_mean(values: Sequence[float]) -> dict[str, float]:
    """Mean of any values and its normal 95 % interval."""
    value = float(np.mean(values))
    half = Z * float(np.std(values)) / max(1, len(values) - 1) ** 0.5
    return {"value": value, "low": value - half, "high": value + half}


def median(values: Sequence[float]) -> dict[str, float]:
    """Median and its 95 % interval, by the ranks between which the true one lies."""
    ranked, half = np.sort(values), Z * len(values) ** 0.5 / 2
    low, high = max(0, int(len(ranked) / 2 - half)), min(len(ranked) - 1, int(len(ranked) / 2 + half))
    return {"value": float(np.median(ranked)), "low": float(ranked[low]), "high": float(ranked[high])}


def markdown(result: Mapping) -> str:
    """The tables of what `evaluate` returns."""
    groups = {group: {} for group in TABLES}
    for name, row in result["rows"].items():
        groups[row["group"]][name] = row["figures"]
    groups["ablation"] = result["ablation"]
    legend = LEGEND.format(**result)
    if result.get("drawn_flicker") is not None:  # evaluations of earlier versions lack it
        legend += f"\n{FLICKER.format(**result)}"
    parts = [
        f"`{result['checkpoint']}`: {result['settings']}. {legend}",
        goals(result["checks"]),
    ]
    parts += [grid(*TABLES[group], rows) for group, rows in groups.items() if rows]
    return "\n\n".join(parts)


def check(what: str, value: float, sign: str, bound: float, unit: int = 100) -> dict:
    """A goal and whether it is met. sign: ">=" or "<="; unit: what value and bound are shown in times."""
    met = value >= bound if sign == ">=" else value <= bound
    return {"what": what, "value": value, "sign": sign, "bound": bound, "met": met, "unit": unit}


def goals(checks: Sequence[Mapping]) -> str:
    """One line on the goals, which names every one that is missed."""
    missed = [
        f"{check['what']} {check['unit'] * check['value']:.1f} (goal {check['sign']} "
        f"{check['unit'] * check['bound']:g})"
        for check in checks
        if not check["met"]
    ]
    line = f"Goals met: {len(checks) - len(missed)} of {len(checks)}."
    return f"{line} Missed: {'; '.join(missed)}." if missed else line


def replace_between(text: str, content: str) -> str:
    """`text` with `content` between the two markers, everything else as it was.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) != 2:
        raise ValueError(f"expected {BEGIN} and then {END} once each in the README; add the two lines.")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def grid(title: str, columns: Sequence[str], rows: Mapping[str, Mapping]) -> str:
    """One table of figures, a row for each name, without empty columns; title: what the rows are."""
    columns = [column for column in columns if any(column in figures for figures in rows.values())]
    lines = [[title, *(COLUMNS[column] for column in columns)], ["---"] + ["---:"] * len(columns)]
    lines += [
        [name, *(_cell(figures.get(column), _factor(column)) for column in columns)]
        for name, figures in rows.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _factor(column: str) -> int:
    return 1 if column in LEVELS else 100


def _cell(figure: Mapping[str, float] | None, factor: float) -> str:
    if figure is None:
        return ""
    value, low, high = (factor * figure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
