"""The networks that others trained, which the user puts into one folder: which file, from where, which bytes.

A file whose checksum is published is opened only if it has that one. Of the others the checksum is noted in
the result, and they have to give features of the right shape.
"""

from dataclasses import dataclass
from pathlib import Path

from univid.files.hashes import noted_sha256
from univid.messages import shown


@dataclass(frozen=True)
class WeightFile:
    """name: in the folder of weights. sha256: of its bytes; None = nobody publishes it."""

    name: str
    source: str
    sha256: str | None = None

    def __str__(self) -> str:
        checksum = f"sha256 {self.sha256}" if self.sha256 else "its checksum is not published"
        return f"{self.name} ({checksum}) from {self.source}"


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
        sha256 = noted_sha256(path)
        if file.sha256 not in (None, sha256):
            raise ValueError(
                f"{shown(path)} is another file: its sha256 is {sha256}, not {file.sha256}; take it from "
                f"{file.source}."
            )
        return Found(path, file, sha256)
    where = f"{shown(folder)} has no" if folder else "no --weights FOLDER is named; it needs"
    others = "".join(f", or {file.name}" for file in files[1:])
    raise ValueError(f"{where} {files[0].name}{others}; get {files[0]}.")
