"""What is inside a checkpoint or a preset, in words, without reading a weight."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..config import to_json
from ..presets import PRESETS, PROFILES
from . import stream
from .native import BUILT_IN, PARTS, built_in_path, meta_modules, read_header

UNET_PARTS = {
    "PSTConv": r".*\.(in|out)_temporal\..*",
    "PSTAttn": r".*\.(norm_pst|pst_attn)\..*",
    "temporal stacks": r".*\.temporal_stack\..*",
    "TemAttn": r".*\.temporal\..*|input_blocks\.0\.1\..*",
    "number embeddings": r"\w+_embedding\..*",
    "image keys and values": r".*\.to_[kv]_image\..*",
    "image projection": r"image_projection\..*",
    "trunk": r".*",
}


def describe(source: str | os.PathLike) -> str:
    """A checkpoint, "built-in", or a preset such as "paper" as text: size by part, config, profile, origin.

    Raises:
        ValueError: neither a preset nor a readable UniVid checkpoint.
    """
    if str(source) in PRESETS:
        config, profile, info = PRESETS[str(source)], PROFILES[str(source)], {"preset": str(source)}
        entries = {
            PARTS[part].prefix + key: stream.Entry(tensor.dtype, tuple(tensor.shape))
            for part, module in meta_modules(config).items()
            for key, tensor in module.state_dict().items()
        }
    else:
        path = built_in_path() if str(source) == BUILT_IN else Path(source)
        reader = stream.Reader(path)
        entries = reader.entries
        config, profile, info = read_header(reader)
        dtypes = sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()})
        info = {"file": f"{path}, {path.stat().st_size / 1e6:,.1f} MB, {' and '.join(dtypes)}"} | info
    sections = (
        _table(info.items()),
        _table([("part", "tensors", "parameters"), *_sizes(entries)]),
        "config\n" + _table(_flat(json.loads(to_json(config)))),
        "sampling profile\n" + _table(_flat(json.loads(to_json(profile)))),
    )
    return "\n\n".join(sections)


def count_parameters(entries: Mapping[str, stream.Entry]) -> dict[str, tuple[int, int]]:
    """Tensors and parameters of each part, by its name."""
    counts: dict[str, tuple[int, int]] = {}
    for key, entry in entries.items():
        part, rest = _part(key)
        if part == "unet":
            part = next(name for name, pattern in UNET_PARTS.items() if re.fullmatch(pattern, rest))
        tensors, parameters = counts.get(part, (0, 0))
        counts[part] = (tensors + 1, parameters + math.prod(entry.shape))
    return counts


def _part(key: str) -> tuple[str, str]:
    """The part of UniVid that a key belongs to, and the key inside it."""
    for name, part in PARTS.items():
        if key.startswith(part.prefix):
            return name, key.removeprefix(part.prefix)
    return "unknown", key


def _sizes(entries: Mapping[str, stream.Entry]) -> Iterator[tuple[str, str, str]]:
    counts = count_parameters(entries)
    inside = {name: counts[name] for name in reversed(UNET_PARTS) if name in counts}
    beside = {name: count for name, count in counts.items() if name not in inside}
    for name, (tensors, parameters) in inside.items():
        yield f"  {name}", f"{tensors:,}", f"{parameters:,}"
    for name, group in (
        ("unet", inside),
        *((name, {name: count}) for name, count in beside.items()),
        ("all", counts),
    ):
        yield name, f"{sum(t for t, _ in group.values()):,}", f"{sum(p for _, p in group.values()):,}"


def _flat(value, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else f"  {key}")
    else:
        yield name, json.dumps(value)


def _table(rows) -> str:
    """Rows as columns: the first and a lone second to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        values = (
            row[1:]
            if len(row) == 2
            else [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        lines.append("  ".join([row[0].ljust(widths[0]), *values]))
    return "\n".join(lines)
