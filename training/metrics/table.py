"""The figures of one folder as a row of Markdown, and below it what each is made of."""

from pathlib import Path

from univid.files.hashes import short
from univid.messages import shown

BETTER = {"lower": " (lower is better)", "higher": " (higher is better)", "neither": ""}
SHOWN = 3  # of sizes, rates and unusable videos; the JSON has all of them


def markdown(result: dict, out: Path) -> str:
    """A table with one row, what its figures are of, what is missing, and where all of it is."""
    columns = {"videos": shown(Path(result["videos"]["folder"]).name or result["videos"]["folder"])}
    columns["protocol"] = result["protocol"]["name"]
    for figure in result["metrics"].values():
        columns[figure["title"] + BETTER[figure["better"]]] = _cell(figure)
    cells = [list(columns), ["---"] * 2 + ["---:"] * len(result["metrics"]), list(columns.values())]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    lines += ["", *(f"- {line}" for line in _notes(result)), "", str(out)]
    return "\n".join(lines)


def _cell(figure: dict) -> str:
    text = number(figure["value"])
    if figure["low"] is not None:
        text += f" [{number(figure['low'])}, {number(figure['high'])}]"
    if "deviation" in figure:
        text += f", ± {number(figure['deviation'])} over {figure['splits']} splits"
    if floor := figure.get("floor"):
        text += f", floor {number(floor['value'])}"
    return text


def number(value: float) -> str:
    """Four digits, as tables have them."""
    return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _notes(result: dict):
    protocol, made_of = result["protocol"], {}
    for figure in result["metrics"].values():
        against = f" against {figure['n_real']:,} real ones" if "n_real" in figure else ""
        weights = figure.get("weights")
        made_by = f"; {weights['file']} {short(weights['sha256'])}" if weights else ""
        network = (
            f"; {figure['network']}{made_by}, {figure['frames']}" if weights else f"; {figure['frames']}"
        )
        of = f"{figure['n']:,} videos{against}, {_frames(figure, protocol)}{network}"
        made_of.setdefault(of, []).append(figure["title"])
    for of, titles in made_of.items():
        yield f"{', '.join(titles)}: {of}."
    for figure in result["metrics"].values():
        if floor := figure.get("floor"):
            yield f"{figure['title']} between two samples of {floor['n']:,} real videos: the floor."
        elif "floor" in figure:
            yield f"{figure['title']}: no floor, for want of real videos."
    for whose, side in (("videos", result["videos"]), ("real videos", result["real"])):
        if side:
            facts = ", ".join(f"{_most(side[part])}{unit}" for part, unit in PARTS.items() if part in side)
            yield f"{whose}: {facts}."
            if side.get("bad"):
                bad = ", ".join(map(shown, list(side["bad"])[:SHOWN]))
                yield f"{len(side['bad'])} {whose} could not be used and are left out: {bad} ..."
    if result["intervals"]["resamples"] > 1:
        yield (
            f"In brackets: {result['intervals']['level']:.0%} intervals by bootstrap over videos, "
            f"{result['intervals']['resamples']} resamples."
        )
    missing = {}
    for name, reason in result["missing"].items():
        missing.setdefault(reason.removeprefix(f"{name} "), []).append(name)
    for reason, names in missing.items():
        yield f"not computed: {', '.join(names)}: {shown(reason, 400)}"


PARTS = {"lengths": " frames", "sizes": " pixels", "rates": " frames per second"}


def _frames(figure: dict, protocol: dict) -> str:
    kind = figure["taken"]["kind"]
    rate = f" at {protocol['fps']:g} a second" if protocol["fps"] else ""
    size = "" if protocol["size"] is None else ", cropped to {1} x {0}".format(*protocol["size"])
    if kind == "all":
        return f"all frames{rate}{size}"
    frames = f"{protocol['frames']} frames"
    if protocol["window"] > protocol["frames"]:
        frames = f"{protocol['frames']} random frames of {protocol['window']}"
    return f"{'1 of ' if kind == 'frame' else ''}{frames}{rate}{size}"


def _most(counts: dict) -> str:
    more = f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else ""
    return " or ".join(list(counts)[:SHOWN]) + more
