"""The folder that `training.prepare` writes: whose it is, what is written, and whether it is whole.

prepared.json  bad.jsonl
images/  clips/    00000.tar, and 00000.json: its checksum, how many samples it has, which ones were bad
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from training import distributed
from training.config import differing_fields
from training.folder import held_by_all, write_json
from univid.files.output import new_file
from univid.files.regular import read_json
from univid.messages import shown

from .manifest import Manifest

BLOCK = 2**22  # bytes read at a time
log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed(out: Path, manifest: Manifest, earlier: Mapping[str, str]) -> Iterator[None]:
    """Make `out` this data's own while the block runs. earlier: the manifest's `shards` as earlier versions'.

    Raises:
        ValueError: another run is at work there, or the folder holds other data.
    """
    with held_by_all(out, [out / name for name in manifest.shards]):
        if distributed.rank() == 0 and not (out / Manifest.NAME).exists():
            write_json(out / Manifest.NAME, manifest.to_dict())
        distributed.barrier()
        kept = Manifest.read(out).to_dict()
        for name, digest in earlier.items():
            if kept["shards"].get(name) == digest:
                kept["shards"][name] = manifest.shards[name]
        differing = differing_fields(kept, manifest.to_dict())
        if differing:
            raise ValueError(
                f"{shown(out)} holds data of other settings or shards ({shown(', '.join(differing))}); take "
                "another folder, or put them back to go on."
            )
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`new_file`, with words on what is there already."""
    try:
        with new_file(path) as temporary:
            yield temporary
    except ValueError as error:
        reason = str(error).rpartition(";")[0] or str(error)  # without the advice to name another output
        raise ValueError(f"{reason}; the shards before it are whole: make room and run it again.") from error


def read_record(path: Path) -> dict | None:
    """What stands beside a finished tar; None if there is nothing, or nothing of ours."""
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except ValueError:
        record = {}
    numbers = all(
        type(record.get(name)) is int and record[name] >= 0 for name in ("bytes", "samples", "short")
    )
    bad = record.get("bad")
    reasons = isinstance(bad, list) and all(isinstance(reason, str) for reason in bad)
    if numbers and reasons and isinstance(record.get("sha256"), str):
        return record
    log.warning("%s is damaged and counts as missing", shown(path))
    return None


def records(out: Path) -> dict[Path, dict]:
    """What stands beside the finished tars, by its path."""
    paths = sorted(path for path in out.glob("*/*.json") if not path.name.startswith("."))
    return {path: record for path in paths if (record := read_record(path)) is not None}


def list_bad(out: Path, records: Iterable[Mapping]) -> Path:
    """Write all bad samples into `bad.jsonl`."""
    path = out / "bad.jsonl"
    with writing(path) as temporary:
        rows = (json.dumps({"reason": reason}) + "\n" for record in records for reason in record["bad"])
        temporary.write_text("".join(rows), encoding="utf-8")
    return path


def verify(out: Path, *, progress: bool = True) -> list[str]:
    """Read all tars of prepared data again; what is wrong with them, a sentence each.

    Raises:
        ValueError: `out` is no folder of prepared data.
    """
    Manifest.read(out)
    tars = {path for path in out.glob("*/*.tar") if not path.name.startswith(".")}
    kept = records(out)
    problems = [f"{tar} has no checksum beside it" for tar in tars if tar.with_suffix(".json") not in kept]
    for path, record in tqdm(kept.items(), desc="verify", unit=" shards", disable=not progress):
        tar = path.with_suffix(".tar")
        if tar not in tars:
            if record["samples"]:
                problems.append(f"{tar} is missing")
            continue
        with open(tar, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != record["sha256"]:
            problems.append(f"{tar} is not what was written")
    return sorted(f"{problem}; delete it and prepare again." for problem in problems)
