"""The folder that `training.prepare` writes: whose it is, what is written, and whether it is whole.

prepared.json  bad.jsonl
images/  clips/    00000.tar, and 00000.json: its checksum, how many samples it has, which ones were bad
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from training import distributed
from training.config import differing_fields
from training.folder import LOCK, held
from training.state import atomic, purge

from .manifest import Manifest

BLOCK = 2**22  # bytes read at a time


@contextlib.contextmanager
def claimed(out: Path, manifest: Manifest) -> Iterator[None]:
    """Make `out` this data's own while the block runs, and remove what a killed run left half written.

    Every process holds a lock of its own, and a run begins when all of those before are open.
    """
    folders = (out, *(out / name for name in manifest.shards))
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            stack.enter_context(held(out / LOCK))
            for other in out.glob(f"{LOCK}_*"):
                with held(other):
                    pass
            for folder in folders:
                purge(folder)
            if not (out / Manifest.NAME).exists():
                with writing(out / Manifest.NAME) as path:
                    path.write_text(json.dumps(manifest.to_dict(), indent=2) + "\n")
        distributed.barrier()
        if distributed.rank():
            stack.enter_context(held(out / f"{LOCK}_{distributed.rank()}"))
        differing = differing_fields(Manifest.read(out).to_dict(), manifest.to_dict())
        if differing:
            raise ValueError(
                f"{out} holds data of other settings or shards ({', '.join(differing)}); take another "
                "folder, or put them back to go on."
            )
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`state.atomic`, that leaves nothing behind and explains a full disk."""
    try:
        with atomic(path) as temporary:
            try:
                yield temporary
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ValueError(
            f"cannot write {path} ({error.strerror or error}); the shards before it are whole: make room and "
            "run it again to go on."
        ) from error


def records(out: Path) -> dict[Path, dict]:
    """What stands beside the finished tars, by its path."""
    paths = sorted(path for path in out.glob("*/*.json") if not path.name.startswith("."))
    return {path: json.loads(path.read_text()) for path in paths}


def list_bad(out: Path, records: Iterable[dict]) -> Path:
    """Write all bad samples into `bad.jsonl`."""
    path = out / f"bad_{distributed.rank()}.jsonl"
    with writing(path) as temporary:
        rows = (json.dumps({"reason": reason}) + "\n" for record in records for reason in record["bad"])
        temporary.write_text("".join(rows))
    return path.replace(out / "bad.jsonl")


def verify(out: Path, *, progress: bool = True) -> list[str]:
    """Read all tars of prepared data again; what is wrong with them, a sentence each.

    Raises:
        ValueError: `out` is no folder of prepared data.
    """
    Manifest.read(out)
    tars = {path for path in out.glob("*/*.tar") if not path.name.startswith(".")}
    problems = [f"{tar} has no checksum beside it" for tar in tars if not tar.with_suffix(".json").exists()]
    for path, record in tqdm(records(out).items(), desc="verify", unit=" shards", disable=not progress):
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
