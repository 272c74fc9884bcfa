"""Shards of latents and tokens instead of pixels and words, which `training.prepare` makes.

A sample is KEY.safetensors in a tar shard, beside KEY.txt and KEY.json:
    latents           `[c t h w]`, the autoencoder's mean, scaled
    text              `[n d]`, tokens of the caption
    image             `[r m d]`, tokens of each of r reference frames
    reference_frames  `[r]`, which frames those are; the first is frame 0
    degraded          `[c t h w]`, latents of a poor copy, where the data was prepared with degradations
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from .members import MEDIUM_BYTES, read_small
from .samples import BadSample, Bucket, PreparedExample, Raw

EXTENSION = "safetensors"  # of Raw.extension, when a sample is a prepared one
TENSORS = {"latents": 4, "text": 2, "image": 3, "reference_frames": 1}  # and their dimensions
DEGRADED = "degraded"  # one more, of the latents' shape


def read_prepared(
    raw: Raw, modality: str, frames: int, window: float, reference: float | None, size: Bucket | None = None
) -> PreparedExample:
    """A picture, one frame of a clip, or `frames` consecutive ones, with the tokens of a picture of it.

    Args:
        modality: "image", "frame" or "video"; a frame is one of the stored reference frames.
        frames: of a video; the others have one.
        window: 0 <= window < 1, where the video's frames begin, or which frame is taken: 0 = at the start.
            Only windows that hold a reference frame are taken.
        reference: 0 <= reference < 1, which of the window's reference frames is the picture. None = the
            window's first frame; windows then begin at reference frames only.
        size: (height, width) of the bucket that the sample is counted in, which a batch has in common.

    Raises:
        BadSample: damaged, another kind of sample, or fewer frames than asked for.
    """
    tensors = read_tensors(raw)
    latents, stored = tensors["latents"], tensors["reference_frames"].tolist()
    height, width = latents.shape[2:]
    if size is not None and (size[0] % height or size[0] // height * width != size[1]):
        raise BadSample(f"latents of {width} x {height} in the bucket of {size[1]} x {size[0]} pixels")
    length = latents.shape[1]
    if modality == "image" and length > 1:
        raise BadSample(f"a clip of {length} frames where a picture belongs")
    if modality != "video":
        chosen = _pick(range(len(stored)), window)
        start, frames = stored[chosen], 1
    elif length < frames:
        raise BadSample(f"{length} frames, {frames} needed")
    else:
        inside = {
            first: [i for i, frame in enumerate(stored) if first <= frame < first + frames]
            for first in (range(length - frames + 1) if reference is not None else stored)
            if first + frames <= length
        }
        start = _pick([first for first, held in inside.items() if held], window)
        chosen = stored.index(start) if reference is None else _pick(inside[start], reference)
    return PreparedExample(
        raw.key,
        raw.caption,
        latents=latents[:, start : start + frames].clone(),  # a view would send the whole clip to the trainer
        degraded=tensors[DEGRADED][:, start : start + frames].clone() if DEGRADED in tensors else None,
        text=tensors["text"],
        image=tensors["image"][chosen].clone(),
    )


def read_tensors(raw: Raw) -> dict[str, Tensor]:
    """The tensors of a sample, as they are stored.

    Raises:
        BadSample: not readable, or not what `prepare` writes.
    """
    try:
        data = raw.media if isinstance(raw.media, bytes) else read_small(raw.media, MEDIUM_BYTES)
        tensors = safetensors.torch.load(data)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BadSample(f"not readable as latents and tokens: {error}") from error
    expected = TENSORS | ({DEGRADED: 4} if DEGRADED in tensors else {})
    if {name: tensor.dim() for name, tensor in tensors.items()} != expected:
        held = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
        raise BadSample(f"not what prepare writes: {held or 'nothing'}")
    kinds = {name: tensor.is_floating_point() for name, tensor in tensors.items()}
    sizes = [side for tensor in tensors.values() for side in tensor.shape]
    if kinds != {name: name != "reference_frames" for name in expected} or 0 in sizes:
        raise BadSample("not what prepare writes: tensors of other types, or empty ones")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise BadSample("it holds numbers that are not finite")
    shape = tensors["latents"].shape
    if (poor := tensors.get(DEGRADED)) is not None and poor.shape != shape:
        raise BadSample(f"a poor copy of {list(poor.shape)} beside latents of {list(shape)}")
    stored, length = tensors["reference_frames"].tolist(), shape[1]
    if stored[:1] != [0] or not all(0 <= frame < length for frame in stored):
        raise BadSample(f"reference frames {stored} of {length} frames, where the first must be 0")
    if len(tensors["image"]) != len(stored):
        raise BadSample(f"tokens of {len(tensors['image'])} pictures for {len(stored)} reference frames")
    return tensors


def _pick(choices, place: float):
    return choices[int(place * len(choices))]


class ShardWriter:
    """A tar of samples that is being written to `file`, and its checksum so far.

    source: the name of the raw shard, which the samples' keys need not repeat.
    """

    def __init__(self, file: BinaryIO, source: str):
        self.source = source
        self.file, self.digest = file, hashlib.sha256()
        self.tar = tarfile.open(
            fileobj=self, mode="w"
        )  # never seeks: every byte passes `write` once, in order
        self.keys: set[str] = set()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def add(self, raw: Raw, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Append a sample: latents and tokens, its caption, and `facts` beside what its json said."""
        key = self._key(raw.key.removeprefix(f"{self.source}:"))
        meta = {**raw.meta, **facts, "key": key, "source": raw.key}
        members = {
            EXTENSION: safetensors.torch.save(tensors),
            "txt": raw.caption.encode(errors="replace"),  # words from a json may hold half a character
            "json": json.dumps(meta).encode(),
        }
        for suffix, data in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")  # without a time: equal samples make equal shards
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))

    def close(self) -> str:
        """End the tar; its SHA-256."""
        self.tar.close()
        return self.digest.hexdigest()

    def _key(self, name: str) -> str:
        """The sample's own name where it has one, without what readers of a tar part names at."""
        stem = re.sub(r"[^\w-]+", "_", name)[-80:]
        key, number = stem, 1
        while key in self.keys:
            number += 1
            key = f"{stem}-{number}"
        self.keys.add(key)
        return key
