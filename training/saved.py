"""What a run has saved: which states lie in its folder, whether they are whole, and what they hold.

A state is a folder of torch.distributed.checkpoint's parts; final.pt is the finished run in one file. Disks
lose files, copies are cut short, and people put things where they do not belong. So everything is held
against what is there before it is used, and nothing that lies in a run's folder is executed.
"""

import contextlib
import hashlib
import io
import logging
import math
import os
import pickle
import pickletools
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException

from univid.files.output import PREFIX
from univid.messages import shown

from .data.walk import Window

log = logging.getLogger(__name__)
COUNTERS = ("step", "skipped", "skipped_in_a_row", "seconds")
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
PARAMETER = "parameter/"
METADATA = ".metadata"  # the last thing that DCP writes of a state
DIGEST = ".metadata.sha256"  # and we after it
FINAL = "final.pt"
RECORD = "config.json"  # the recipe, beside the states and in each of them
NAME = re.compile(r"step_(\d{8,18})")


class Damaged(Exception):
    """A state or final.pt that cannot be used; the text is the reason, in a few words."""


def states(folder: Path) -> list[Path]:
    """What has a state's name in `folder`, whole or not, oldest first."""
    return sorted((path for path in folder.glob("step_*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step that a state is of, as its name says."""
    return int(NAME.fullmatch(path.name)[1])


def begun(folder: Path) -> bool:
    """Whether there is something of a run in `folder` that another one must not replace."""
    return (folder / FINAL).exists() or bool(states(folder))


def temporary_of(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{path.name}")


def purge(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(path: Path) -> Path:
    """Give a damaged state a name that is no state's, so that the run may save one in its place."""
    number, aside = 1, path.with_name(f"damaged_{path.name}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged_{path.name}_{number}")
    os.replace(path, aside)
    return aside


class Saved(dcp.FileSystemReader):
    """A state whose metadata says what lies there, and all of whose parts do.

    tensors: what is saved, by name, on the meta device: shapes and types alone.

    Raises:
        Damaged: it is not so.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.folder = path
        with _damage(f"its {METADATA} cannot be read"):
            self.metadata = _read_metadata(path / METADATA)
        with _damage(f"its {METADATA} is of another kind"):
            entries = self.metadata.state_dict_metadata
            self.tensors = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                for name, entry in entries.items()
            }
            ends: dict[str, int] = {}  # of the bytes that are read, by file
            for part in self.metadata.storage_data.values():
                ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
            held = all(
                sum(math.prod(chunk.sizes) for chunk in entry.chunks) == math.prod(entry.size)
                for entry in entries.values()
            )
        if not held or not {"steps", "counters"} <= entries.keys():
            raise Damaged(f"its {METADATA} is of another kind")
        there = 0
        self.parts = [(p.relative_path, p.offset, p.length) for p in self.metadata.storage_data.values()]
        for name, end in ends.items():
            if Path(name).name != name or not (path / name).is_file():
                raise Damaged(f"its {shown(name)} is gone")
            size = (path / name).stat().st_size
            if size < end:
                raise Damaged(f"its {name} is cut short")
            there += size
        if sum(tensor.nbytes for tensor in self.tensors.values()) > there:
            raise Damaged(f"its {METADATA} asks for more than there is")

    def verify(self, rank: int = 0, processes: int = 1) -> None:
        """Compare this process's share of the contents with their checksums, which PyTorch itself ignores.

        Raises:
            Damaged: they are others.
        """
        for name, offset, length in self.parts[rank::processes]:
            with _damage(f"its {name} cannot be read"), open(self.folder / name, "rb") as file:
                _check_sums(io.BufferedReader(Window(file, offset, length)), f"its {name} was changed")

    def read_metadata(self, *_, **__) -> metadata.Metadata:
        """What was read already: DCP's own would execute what a pickle asks for."""
        self.metadata.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return self.metadata

    def load(self, tensors: dict[str, Tensor], *, no_dist: bool = False) -> None:
        """Fill tensors of the saved shapes, in place. Under several processes all call it.

        Raises:
            Damaged: what lies there cannot be read, or does not fit.
        """
        with _damage("its contents cannot be read"):
            dcp.load(tensors, storage_reader=self, no_dist=no_dist or not dist.is_initialized())
        counters = tensors["counters"].tolist()
        if len(counters) != len(COUNTERS) or not all(math.isfinite(n) and n >= 0 for n in counters):
            raise Damaged("its counters are none")
        if int(counters[0]) != step_of(self.folder):
            raise Damaged(f"it holds step {int(counters[0])}")


def _check_sums(file: BinaryIO, otherwise: str) -> None:
    """Read a file of torch.save, a zip archive, with the checksums in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            changed = archive.testzip()
    except zipfile.BadZipFile as error:
        raise Damaged(otherwise) from error
    if changed is not None:
        raise Damaged(otherwise)


def _read_metadata(path: Path) -> metadata.Metadata:
    data = path.read_bytes()
    kept = path.with_name(DIGEST)  # states of earlier versions have none
    if kept.exists() and kept.read_bytes().strip() != hashlib.sha256(data).hexdigest().encode():
        raise ValueError(f"{path} was changed")
    for code, number, _ in pickletools.genops(data):  # which also sees that all it announces is there
        if code.name.endswith("PUT") and isinstance(number, int) and number > len(data):
            raise pickle.UnpicklingError("more places in memory are named than the file has bytes")
    return _Metadata(io.BytesIO(data)).load()


class _Metadata(pickle.Unpickler):
    """Reads a state's metadata, in which nothing but descriptions of tensors may occur."""

    def find_class(self, module: str, name: str):
        if module == metadata.__name__ and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if (module, name) in ((filesystem.__name__, "_StorageInfo"), ("torch.serialization", "_get_layout")):
            return super().find_class(module, name)
        kinds = (torch.dtype, torch.layout, torch.memory_format)
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), kinds)):
            return getattr(torch, name)
        if module.split(".")[0] == "pathlib":
            return lambda *_: None  # where it was written, which is of no interest
        raise pickle.UnpicklingError(f"{module}.{name} describes no tensor")


@contextlib.contextmanager
def _damage(reason: str) -> Iterator[None]:
    """Whatever the libraries raise of a damaged file is one Damaged; what ends a program stays what it is."""
    try:
        yield
    except CheckpointException as error:  # no Exception: it carries those of all processes, Ctrl-C too
        causes = [failure[0] for failure in error.failures.values()]
        for cause in causes:
            if isinstance(cause, MemoryError) or not isinstance(cause, Exception):
                raise cause from error
        raise _damaged(reason, causes[0]) from error
    except (Damaged, MemoryError):
        raise
    except Exception as error:
        raise _damaged(reason, error) from error


def _damaged(reason: str, error: Exception) -> Damaged:
    why = error.strerror if isinstance(error, OSError) else None
    return Damaged(f"{reason} ({why})" if why else reason)


def read_state(path: Path) -> dict:
    """A saved state as full tensors on the CPU: "model", "ema", "optimizer" by name, and the counters.

    Raises:
        Damaged: it is not whole.
    """
    saved = Saved(path)
    saved.verify()
    tensors = {name: torch.zeros_like(meta, device="cpu") for name, meta in saved.tensors.items()}
    saved.load(tensors, no_dist=True)
    found: dict = {"model": {}, "ema": {}, "optimizer": {}}
    found |= dict(zip(COUNTERS, tensors.pop("counters").tolist(), strict=True))
    with _damage("its parts do not fit each other"):
        for step, key in zip(tensors.pop("steps"), sorted(tensors), strict=True):
            name = key.removeprefix(PARAMETER)
            found["model"][name], found["ema"][name], *moments = tensors[key].unbind(-1)
            if moments:
                found["optimizer"][name] = dict(zip(("step", *MOMENTS), (step, *moments), strict=True))
    return found


def load(path: Path) -> dict:
    """A `final.pt` as a dict on the CPU: model, ema, step, recipe, seconds ...

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if not path.exists():
        raise ValueError(
            f"expected the finished run {shown(path.parent)}, got no {path.name}; train it first."
        )
    try:
        return read_final(path)
    except Damaged as damage:
        raise ValueError(
            f"{shown(path)} is damaged: {damage}; delete it and train the run again, which goes on from its "
            "newest state."
        ) from damage


def read_final(path: Path) -> dict:
    """A `final.pt`, as `load`.

    Raises:
        Damaged: it is no such file.
    """
    with _damage("it cannot be read"):
        with open(path, "rb") as file:
            _check_sums(file, "it was changed or cut")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    with _damage("it is of another kind"):
        tensors = [tensor for part in ("model", "ema") for tensor in saved[part].values()]
        right = all(isinstance(tensor, Tensor) and _plain(tensor) for tensor in tensors)
        right &= isinstance(saved["recipe"], dict)
        right &= all(math.isfinite(saved[name]) and saved[name] >= 0 for name in ("step", "seconds"))
    if not (tensors and right):
        raise Damaged("it is of another kind")
    return saved


def _plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_floating_point()


def newest_weights(folder: Path) -> dict:
    """What `load` or `read_state` gives of the newest step in a run's folder that is whole.

    Raises:
        ValueError: there is none.
    """
    found = [(step_of(path), path) for path in states(folder)]
    damaged, final = [], None
    if (folder / FINAL).exists():
        try:
            final = read_final(folder / FINAL)
        except Damaged as damage:
            damaged.append((folder / FINAL, damage))
    for step, path in reversed(found):
        if final is not None and final["step"] >= step:
            break
        try:
            state = read_state(path)
        except Damaged as damage:
            damaged.append((path, damage))
        else:
            passed_over(damaged, path.name)
            return state
    if final is not None:
        passed_over(damaged, FINAL)
        return final
    if damaged:
        raise nothing_whole(folder, damaged)
    raise ValueError(f"expected a state in {shown(folder)}, got none yet; let the run reach its first one.")


def passed_over(damaged: list[tuple[Path, Damaged]], instead: str) -> None:
    """Say which states are damaged, and what is taken in their place."""
    for path, damage in damaged:
        log.warning("%s is damaged: %s; %s is taken instead", shown(path), damage, instead)


def nothing_whole(folder: Path, damaged: list[tuple[Path, Damaged]]) -> ValueError:
    """What to raise where something was saved and none of it can be used."""
    reasons = "; ".join(f"{path.name}: {damage}" for path, damage in damaged[:3])
    return ValueError(
        f"no state in {shown(folder)} is whole ({reasons}); put one back from a copy, or take another name "
        "to start anew."
    )


def take_over(module: nn.Module, weights: Mapping[str, Tensor], of: Path | str) -> None:
    """Put saved weights into a module.

    Raises:
        ValueError: they are those of another network.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:  # of many lines
        raise ValueError(
            f"the weights of {shown(of)} are those of another network; take the run that belongs to it, or "
            "train it again."
        ) from error
