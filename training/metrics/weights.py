"""The networks that others trained, which the user puts into one folder: which file, from where, which bytes.

A file whose checksum is published is opened only if it has that one. Of the others the checksum is noted in
the result, and they have to give features of the right shape.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from univid.files.hashes import noted_sha256
from univid.files.regular import open_regular
from univid.messages import shown


@dataclass(frozen=True)
class WeightFile:
    """name: in the folder of weights. sha256: of its bytes; None = nobody publishes it.

    git_blob: of a file in a repository, whose tree names it: the id that `git hash-object` gives it.
    """

    name: str
    source: str
    sha256: str | None = None
    git_blob: str | None = None

    def __str__(self) -> str:
        kind, checksum = self._published()
        checksum = f"{kind} {checksum}" if checksum else "its checksum is not published"
        return f"{self.name} ({checksum}) from {self.source}"

    def _published(self) -> tuple[str, str | None]:
        return ("git blob", self.git_blob) if self.git_blob else ("sha256", self.sha256)

    def check(self, path: Path) -> str:
        """The sha256 of a file's bytes.

        Raises:
            ValueError: they are not the published ones.
        """
        sha256 = noted_sha256(path)
        kind, published = self._published()
        found = _git_blob(path) if self.git_blob else sha256
        if published not in (None, found):
            raise ValueError(
                f"{shown(path)} is another file: its {kind} is {found}, not {published}; take it from "
                f"{self.source}."
            )
        return sha256


@dataclass(frozen=True)
class Found:
    """A file that is there. sha256: what its bytes have."""

    path: Path
    file: WeightFile
    sha256: str


def find_weights(files: tuple[WeightFile, ...], folder: Path | None) -> Found:
    """The first of these files that the folder has.

    Raises:
        ValueError: it has none of them, or one whose bytes are not the published ones.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"expected a folder of weights, got {shown(folder)}, which is none; name one.")
    for file in files:
        path = folder / file.name if folder else None
        if path is None or not path.is_file():
            continue
        return Found(path, file, file.check(path))
    where = f"{shown(folder)} has no" if folder else "no --weights FOLDER is named; it needs"
    others = "".join(f", or {file.name}" for file in files[1:])
    raise ValueError(f"{where} {files[0].name}{others}; get {files[0]}.")


def _git_blob(path: Path) -> str:
    """SHA-1 of a file as git counts it, with its kind and length in front."""
    with open_regular(path) as file:
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
