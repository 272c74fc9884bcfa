"""The door for what is written: a file or a folder gets its name when it is complete, or never.

A path is a path of this machine. What is written lies under a short hidden name beside its place until it is
complete, so the file system that takes the final name takes that one too, and whatever ends the work removes
it. A link is followed: what it leads to is replaced, the link stays.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..messages import shown
from ..signals import undisturbed

PREFIX = ".partial_"  # of all that is unfinished
BLOCK = bytes(4096)
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
# Windows' drives have one letter. Path() makes one slash of two, so a str is what to look at.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

AnyPath = str | os.PathLike


def check_file(path: AnyPath, inputs: Iterable[AnyPath | None] = (), size: int = 0) -> None:
    """Refuse, before any work is done, a path at which `new_file` could not write.

    Args:
        inputs: files and folders that are read meanwhile; none of them may be replaced. None stands for none.
        size: bytes that will be written, if they are known.

    Raises:
        ValueError: an address, a folder, a device, a file that is protected or one of the inputs; a place
            that takes no new file, a name that the file system does not take, or not enough space.
    """
    target = _target(path)
    _check_inputs(path, target, inputs)
    _probe(path, target, size)


def check_folder(path: AnyPath, *, add: bool = False, size: int = 0) -> None:
    """Refuse, before any work is done, a path at which `new_folder` could not make a folder.

    add: as `new_folder`. size: as `check_file`.

    Raises:
        ValueError: as `check_file`; a file in its place, or, unless `add`, a folder that holds something.
    """
    target = _folder_target(path, add)
    _probe(path, target / PREFIX if os.path.isdir(target) else target, size)


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends without an error.

    Missing folders are made, and go again if nothing comes to lie in them.

    Raises:
        ValueError: as `check_file`, or the operating system refuses to write.
    """
    target = _target(path)
    temporary = _beside(target)
    with _explained(path), _parents(target):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            _remove(temporary)


@contextlib.contextmanager
def new_folder(path: AnyPath, *, add: bool = False) -> Iterator[Path]:
    """A temporary folder to write to, which becomes `path` when the block ends without an error.

    add: `path` may hold something already: then the new files join it, each in the place of an older one.

    Raises:
        ValueError: as `check_folder`, or the operating system refuses to write.
    """
    target = _folder_target(path, add)
    there = target.is_dir()  # it keeps its owner, and cannot be replaced where a disk is mounted on it
    temporary = _beside(target / PREFIX if there else target)
    with _explained(path), _parents(target):
        try:
            temporary.mkdir()
            yield temporary
            if there:
                _move(temporary, target)
            else:
                os.replace(temporary, target)
        finally:
            _remove(temporary)


def _target(path: AnyPath) -> Path:
    """Where a file is to lie, behind any links."""
    target = _resolved(path)
    with _explained(path):
        try:
            mode = os.stat(target).st_mode
        except (FileNotFoundError, NotADirectoryError):  # the second one speaks of a folder above it
            return target
    if stat.S_ISDIR(mode):
        raise ValueError(f"expected a file to write, but {shown(path)} is a folder; add a file name.")
    if not stat.S_ISREG(mode):
        raise ValueError(f"expected a file to write, but {shown(path)} is a device or pipe; name another.")
    if not os.access(target, os.W_OK):
        raise ValueError(f"{shown(path)} is protected against writing; name another output.")
    return target


def _folder_target(path: AnyPath, add: bool) -> Path:
    target = _resolved(path)
    if os.path.isdir(target):
        with _explained(path):
            if not add and any(target.iterdir()):
                raise ValueError(f"the folder {shown(path)} already holds files; name a new one.")
    elif os.path.lexists(target):
        raise ValueError(f"expected a folder to write, but {shown(path)} is a file; name another.")
    return target


def _resolved(path: AnyPath) -> Path:
    text = os.fspath(path)
    if ADDRESS.match(text):
        raise ValueError(
            f"expected the name of a file on this machine, got the address {shown(text)}; leave "
            f"{shown(ADDRESS.match(text)[0])} out."
        )
    if "\0" in text:
        raise ValueError(f"no file can be called {shown(text)}; name another output.")
    return Path(os.path.realpath(text))


def _check_inputs(path: AnyPath, target: Path, inputs: Iterable[AnyPath | None]) -> None:
    """Compare by what the file system says, so that links and another case of letters hide nothing."""
    if not target.exists():
        return
    for given in inputs:
        files = Path(given).rglob("*") if given is not None and Path(given).is_dir() else (given,)
        if any(
            file is not None and os.path.exists(file) and os.path.samefile(file, target) for file in files
        ):
            raise ValueError(
                f"{shown(path)} is read too, as {shown(given)}, and would be replaced; name another output."
            )


def _probe(path: AnyPath, target: Path, size: int = 0) -> None:
    """Write a little under a temporary name and under the final one; nothing of it stays."""
    with undisturbed(), _explained(path), _parents(target):
        for name in (_beside(target), target):
            if not os.path.lexists(name):
                file = open(name, "xb")
                try:
                    with file:
                        file.write(BLOCK)
                finally:
                    os.unlink(name)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise ValueError(
                f"{shown(path)} will take {size / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free there; make "
                "room or name another output."
            )


@contextlib.contextmanager
def _explained(path: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "make room" if error.errno in FULL else "name another output"
        raise ValueError(f"{shown(path)} cannot be written ({error.strerror or error}); {advice}.") from error


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above `target` that are missing; they go again where nothing lies in them."""
    missing = [folder for folder in target.parents if not os.path.exists(folder)]  # innermost first
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # one of them is a file
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _beside(target: Path) -> Path:
    return target.with_name(PREFIX + uuid.uuid4().hex[:8])


def _move(folder: Path, target: Path) -> None:
    """Move all that `folder` holds into `target`, or nothing of it that was not there before."""
    moved = []
    try:
        for source in sorted(folder.iterdir()):
            place = target / source.name
            if not os.path.lexists(place):
                moved.append(place)
            os.replace(source, place)
    except BaseException:
        for place in moved:
            _remove(place)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # gone, or still held open on Windows
            path.unlink()
