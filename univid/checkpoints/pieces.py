"""What every tensor of an imported checkpoint is made from.

Each has one origin: a tensor of the source under another name, one that is padded or scaled, a copy, or a
fixed start value. Names and shapes are compared before a tensor is read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import ModelConfig
from ..files.tensors import Entry, Weights
from . import extension, names
from .foreign import Foreign, naming
from .native import PARTS, check_depth, meta_modules
from .shapes import Shapes

Maker = Callable[[], Tensor]


@dataclass(frozen=True)
class Piece:
    """One tensor of the output: its entry, how to make it, and one of "mapped", "padded" and "new"."""

    entry: Entry
    make: Maker
    kind: str


def assemble(
    foreign: Foreign, config: ModelConfig, dtype: torch.dtype | None, seed: int
) -> tuple[dict[str, Piece], dict[str, list[Entry]]]:
    """Every tensor of a checkpoint of `config`, and the source's "folded" and "dropped" ones.

    Args:
        config: the source's, or one that `extension.extended` made of it.
        dtype: of all tensors; None keeps the widest of each part.

    Raises:
        ValueError: unknown or missing tensors, wrong shapes or types.
    """
    with naming(foreign.parts["unet"][0].path):
        check_depth(foreign.config, {part: len(held.entries) for part, (held, _) in foreign.parts.items()})
        own, full = _part_shapes(foreign.config), _part_shapes(config)
    pieces: dict[str, Piece] = {}
    found: dict[str, dict[str, names.Source]] = {}
    for part, (weights, table) in foreign.parts.items():
        idle = _idle_text(config.text.layers) if part == "text_encoder" else ()
        with naming(weights.path):
            found[part] = _find(weights, table, own[part], idle)
            kept = dtype or _dtype(weights, found[part].values())
        read = {key: _reader(weights, source, own[part][key]) for key, source in found[part].items()}
        make = dict(read)
        for key in full[part].keys() - read.keys():
            make[key] = _start(part, key, full[part][key], read, seed)
        if "image_projection.proj.weight" in make and "image_encoder" in foreign.parts:
            if "image_projection.proj.weight" not in read:
                make |= _clip_projection(*foreign.parts["image_encoder"], full[part])
        for key, shape in full[part].items():
            kind = "new" if key not in read else "mapped"
            if kind == "mapped" and shape != own[part][key]:
                kind, make[key] = "padded", partial(_padded, read[key], shape[2])
            pieces[PARTS[part].prefix + key] = Piece(Entry(kept, shape), make[key], kind)
    gates = [
        foreign.parts[part][0].entries[source.gate]
        for part, sources in found.items()
        for source in sources.values()
        if isinstance(source, names.Gated)
    ]
    return pieces, {"folded": gates, "dropped": _dropped(foreign, found)}


def _part_shapes(config: ModelConfig) -> dict[str, Shapes]:
    return {
        part: {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        for part, module in meta_modules(config).items()
    }


def _find(
    weights: Weights, table: names.Table, shapes: Shapes, idle: tuple[str, ...]
) -> dict[str, names.Source]:
    """Where each tensor of a part comes from; only those that begin with one of `idle` may be absent."""
    found = names.find(table, shapes, weights.entries)
    missing = [key for key in shapes if key not in found and not key.startswith(idle or "\0")]
    if missing or not found:
        needed = {name for key in missing for name in names.parts(table.source(key))}
        raise ValueError(
            f"lacks {names.listed(needed - weights.entries.keys())}; it is damaged or of another model."
        )
    there = {name: entry.shape for name, entry in weights.entries.items()}
    for key, source in found.items():
        names.check(source, shapes[key], there)
    return found


def _dropped(foreign: Foreign, found: Mapping[str, Mapping[str, names.Source]]) -> list[Entry]:
    """What no part needs, file by file; each tensor of it must be known."""
    files = {weights.path: weights for weights, _ in foreign.parts.values()}
    rest = []
    for path, weights in files.items():
        inside = [part for part, (held, _) in foreign.parts.items() if held.path == path]
        patterns = [pattern for part in inside for pattern in foreign.parts[part][1].dropped]
        with naming(path):
            unused = names.unused(
                (source for part in inside for source in found[part].values()),
                weights.entries,
                (*patterns, *foreign.dropped),
            )
        rest += [weights.entries[name] for name in unused]
    return rest


def _dtype(weights: Weights, sources: Iterable[names.Source]) -> torch.dtype:
    """A type that loses nothing of the tensors that are used: the widest, or float32 where several are."""
    found = {name: weights.entries[name].dtype for source in sources for name in names.parts(source)}
    for name, dtype in found.items():
        if not dtype.is_floating_point:
            raise ValueError(f"has {name} of type {dtype}; take a version with floating-point weights.")
    size = max(dtype.itemsize for dtype in found.values())
    widest = {dtype for dtype in found.values() if dtype.itemsize == size}
    return widest.pop() if len(widest) == 1 else torch.float32


def _start(part: str, key: str, shape: tuple[int, ...], read: Mapping[str, Maker], seed: int) -> Maker:
    """How to make a tensor that the source does not have."""
    if part != "unet":
        return partial(torch.zeros, shape)  # of the text tower: see _idle_text
    return partial(extension.new_tensor, key, shape, lambda name: read[name](), seed)


def _idle_text(layers: int) -> tuple[str, ...]:
    """What text tokens do not depend on, and some files leave out: the last layer, and CLIP's projection."""
    return (f"transformer.resblocks.{layers - 1}.", "text_projection")


def _clip_projection(weights: Weights, table: names.Table, shapes: Shapes) -> dict[str, Maker]:
    """The image projection as CLIP's own ln_post and projection (UniVG)."""
    width = shapes["image_projection.norm.weight"]
    projection = _reader(weights, table.source("proj"), shapes["image_projection.proj.weight"][::-1])
    return {
        "image_projection.norm.weight": _reader(weights, table.source("ln_post.weight"), width),
        "image_projection.norm.bias": _reader(weights, table.source("ln_post.bias"), width),
        "image_projection.proj.weight": lambda: projection().T,
    }


def _reader(weights: Weights, source: names.Source, shape: tuple[int, ...]) -> Maker:
    def read() -> Tensor:
        with naming(weights.path):
            return names.fetch(source, shape, weights.read)

    return read


def _padded(read: Maker, taps: int) -> Tensor:
    return extension.padded(read(), taps)
