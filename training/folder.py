"""A run's folder: whose it is, what the run was begun with, and that one run at a time works in it."""

import contextlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from univid.files.output import new_file
from univid.files.regular import read_json
from univid.messages import shown

from . import distributed
from .config import Recipe, differing_fields
from .saved import FINAL, RECORD, Damaged, begun, purge, read_final, states

log = logging.getLogger(__name__)
LOCK = ".lock"
EVIDENCE = "data.json"
NAMES = " names"  # of a kind of samples: what they are called, which is evidence too
# What may differ when a run is continued: it changes how long, how and where, not what is computed.
FREE = (
    "name", "steps", "max_skipped", "engine", "logs", "options.samples", "options.validation",
    "options.data.workers", "options.data.max_bad_share",
)  # fmt: skip
# And where things lie that are not read, or of which there is evidence that they are the same: its keys.
MOVABLE = {
    "options.base": "base",
    "options.data.images.paths": f"image{NAMES}",
    "options.data.clips.paths": f"clip{NAMES}",
}


@contextlib.contextmanager
def claimed(folder: Path, recipe: Recipe, evidence: Mapping[str, str]) -> Iterator[None]:
    """Make `folder` this recipe's own while the block runs, and remove what a killed run left half written.

    evidence: what the run reads, in words that tell it from other data, by kind.

    Raises:
        ValueError: another run is at work there, or the folder holds a run of another recipe or other data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK):
        purge(folder)
        seen = {}
        if begun(folder):  # else nothing is lost, and what was wrong may be put right
            seen = _evidence(folder / EVIDENCE)
            compare(folder, recipe, evidence.keys() - seen.keys())
            compare_evidence(folder, seen, evidence)
        write_json(folder / RECORD, recipe.to_dict())
        if evidence:
            write_json(folder / EVIDENCE, seen | evidence if seen else evidence)
        yield


@contextlib.contextmanager
def held_by_all(out: Path, folders: Collection[Path] = ()) -> Iterator[None]:
    """Hold `out` for all processes of one run while the block runs; what a killed one left half written goes.

    Every process holds a lock of its own, and the block begins when all of those before are open. folders:
    more of them, made and cleared as `out` is.

    Raises:
        ValueError: another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            for folder in (out, *folders):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(out / LOCK))
            for other in out.glob(f"{LOCK}_*"):
                with held(other):
                    pass
            for folder in (out, *folders):
                purge(folder)
        distributed.barrier()
        if distributed.rank():
            stack.enter_context(held(out / f"{LOCK}_{distributed.rank()}"))
        yield


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the system opens it when the process dies.

    Raises:
        ValueError: another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"another run is at work in {shown(path.parent)}; wait for it, stop it, or take another name."
        ) from error
    try:
        yield
    finally:
        lock.release()


def compare(folder: Path, recipe: Recipe, unseen: Collection[str]) -> None:
    """Refuse to go on with a run of other settings.

    unseen: kinds of evidence that there was none of; where such files lie has to stay the same.

    Raises:
        ValueError: in one sentence, which names them; or nothing tells what the settings were.
    """
    free = (*FREE, *(name for name, kind in MOVABLE.items() if kind not in unseen))
    differing = [
        name
        for name in differing_fields(recorded(folder), recipe.to_dict())
        if not any(name == one or name.startswith(f"{one}.") for one in free)
    ]
    if differing:
        raise ValueError(
            f"{shown(folder)} holds a run with other settings ({shown(', '.join(differing))}); take another "
            "name, or put the settings back to continue it."
        )


def recorded(folder: Path) -> dict:
    """The recipe that the run in `folder` was begun with, as JSON values.

    From its config.json; where that is missing or damaged, from the newest of the states or from final.pt,
    all of which carry it.

    Raises:
        ValueError: nothing of a run is there, or nothing that says what it is.
    """
    if not (begun(folder) or (folder / RECORD).exists()):
        raise ValueError(
            f"expected a run in {shown(folder)}, got none; choose another with --root and --run."
        )
    places = [folder, *reversed(states(folder)), folder / FINAL]
    for place in places:
        with contextlib.suppress(ValueError, Damaged, OSError):
            found = read_final(place)["recipe"] if place.name == FINAL else read_json(place / RECORD)
            if isinstance(found.get("task"), str):
                if place is not folder:
                    log.warning(
                        "%s is missing or damaged; the recipe in %s is taken",
                        shown(folder / RECORD),
                        place.name,
                    )
                return found
    raise ValueError(
        f"{shown(folder / RECORD)} is missing or damaged; put it back from a copy, or take another name."
    )


def compare_evidence(folder: Path, seen: Mapping[str, str], evidence: Mapping[str, str]) -> None:
    """Refuse to go on with other data: a sample's place in the run follows from what there is.

    Raises:
        ValueError: in one sentence, which says what differs.
    """
    changed = [kind for kind in evidence if seen.get(kind, evidence[kind]) != evidence[kind]]
    # That other samples have other names needs no words.
    changed = [k for k in changed if not k.endswith(NAMES) or k.removesuffix(NAMES) not in changed]
    if changed:
        then, now = (", ".join(f"{held[kind]} of {kind}" for kind in changed) for held in (seen, evidence))
        raise ValueError(
            f"the run in {shown(folder)} was begun with {shown(then)}, there are now {shown(now)}; put the "
            "data back, or take another name for the run."
        )


def _evidence(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        found = {"": error}
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(
            f"{shown(path)} is damaged; put it back from a copy, or delete it if the data is what the run "
            "was begun with."
        )
    return found


def write_json(path: Path, value: Mapping) -> None:
    """Write JSON, whole or not at all.

    Raises:
        ValueError: it cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
