"""What is inside a checkpoint or a preset, in words, without reading a weight."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping

from ..config import to_json
from ..files.tensors import Entry
from ..messages import shown
from ..presets import PRESETS, PROFILES
from .native import PARTS, meta_modules
from .opened import open_checkpoint

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

    One of another project is described as what `import` makes of it.

    Raises:
        ValueError: neither a preset nor a checkpoint that can be opened.
    """
    if str(source) in PRESETS:
        config, profile, info = PRESETS[str(source)], PROFILES[str(source)], {"preset": str(source)}
        entries = {
            PARTS[part].prefix + key: Entry(tensor.dtype, tuple(tensor.shape))
            for part, module in meta_modules(config).items()
            for key, tensor in module.state_dict().items()
        }
    else:
        opened = open_checkpoint(source)
        config, profile, entries = opened.config, opened.profile, opened.all_entries
        dtypes = sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()})
        size = sum(entry.num_bytes for entry in entries.values())
        file = f"{shown(opened.path)}, {size / 1e6:,.1f} MB, {' and '.join(dtypes)}"
        info = {"file": file} | {shown(key, 40): shown(text, 200) for key, text in opened.info.items()}
    sections = (
        _table(info.items()),
        _table([("part", "tensors", "parameters"), *_sizes(entries)]),
        "config\n" + _table(_flat(json.loads(to_json(config)))),
        "sampling profile\n" + _table(_flat(json.loads(to_json(profile)))),
    )
    return "\n\n".join(sections)


def count_parameters(entries: Mapping[str, Entry]) -> dict[str, tuple[int, int]]:
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


def _sizes(entries: Mapping[str, Entry]) -> Iterator[tuple[str, str, str]]:
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
