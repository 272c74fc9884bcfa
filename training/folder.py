"""A run's folder: whose it is, and that one run at a time works in it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .config import Recipe, differing_fields
from .state import atomic, purge

# What may differ when a run is continued: it changes how long and how, not what is computed.
FREE = ("steps", "engine.", "logs.")
LOCK = ".lock"


@contextlib.contextmanager
def claimed(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Make `folder` this recipe's own while the block runs, and remove what a killed run left half written.

    Raises:
        ValueError: another run is at work there, or the folder holds a run of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK):
        purge(folder)
        claim(folder, recipe)
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
            f"another run is at work in {path.parent}; wait for it, stop it, or take another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, recipe: Recipe) -> None:
    """Write config.json, or compare with the one that is there."""
    path = folder / "config.json"
    if path.exists():
        differing = differing_fields(json.loads(path.read_text()), recipe.to_dict())
        if differing := [name for name in differing if not name.startswith(FREE)]:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(differing)}); "
                "take another folder, or put the settings back to continue it."
            )
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(recipe.to_dict(), indent=2) + "\n")
