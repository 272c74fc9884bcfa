"""What prepared data was made with, so that it never meets a network or a way of training it does not fit."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from univid.config import UNetConfig
from univid.files.regular import read_json
from univid.messages import shown
from univid.model import UniVid

from .config import DataConfig

PARTS = ("vae", "text_encoder", "image_encoder")  # what encodes


@dataclass(frozen=True)
class Manifest:
    """What one folder of prepared data was made with: its prepared.json. All are JSON values.

    settings: those of `prepare` that shape the data. weights: a digest of each part that encoded. widths:
    channels of "latents", "text" and "image". shards: by "images" and "clips", a digest of what the raw
    shards are called.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, str]
    widths: Mapping[str, int]
    shards: Mapping[str, str]

    NAME: ClassVar[str] = "prepared.json"

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """That of the folder of prepared data that `path` is, or lies in.

        Raises:
            ValueError: there is none, or it cannot be read.
        """
        file = folder_of(path) / cls.NAME
        try:
            found = cls(**read_json(file))
            right = found._sound()
        except (ValueError, TypeError, AttributeError, LookupError):
            right = False
        if not right:
            raise ValueError(f"{shown(file)} is damaged; put it back from a copy, or prepare the data again.")
        return found

    def _sound(self) -> bool:
        """Whether all is there that `check` looks at, and of its kind."""
        buckets, fps, frames = (self.settings[name] for name in ("buckets", "fps", "frames"))
        texts = [self.weights[part] for part in PARTS] + list(self.shards.values())
        numbers = [self.widths[name] for name in ("latents", "text", "image")]
        numbers += [frames, *(side for height, width in buckets for side in (height, width))]
        return (
            all(isinstance(text, str) for text in texts)
            and all(type(number) is int for number in numbers)
            and isinstance(fps, int | float)
        )

    def to_dict(self) -> dict:
        """JSON values only."""
        return json.loads(json.dumps(asdict(self)))

    def check(self, unet: UNetConfig, data: DataConfig, weights: Mapping[str, str] | None = None) -> None:
        """Refuse data that this network or this way of training cannot use.

        Args:
            weights: `digests` of the model that is trained, where it holds these parts.

        Raises:
            ValueError: other widths, buckets, frame rate, encoders or degradations, or clips shorter than
                asked for.
        """
        stream = unet.image_stream
        expected = {
            "latents": unet.out_channels,
            "text": unet.context_dim,
            "image": None if stream is None else stream.width,
        }
        for name, width in expected.items():
            if width is not None and width != self.widths[name]:
                raise ValueError(
                    f"expected prepared {name} of width {width}, got {self.widths[name]}; prepare the data "
                    "with the checkpoint that is trained."
                )
        for part, digest in (weights or {}).items():
            if digest != self.weights[part]:
                raise ValueError(
                    f"expected data prepared with this {part} ({digest[:12]}), got data of another one "
                    f"({self.weights[part][:12]}); prepare the data with the checkpoint that is trained."
                )
        buckets = {tuple(bucket) for bucket in self.settings["buckets"]}
        if buckets != set(data.buckets):
            raise ValueError(
                f"expected the buckets of the prepared data, {sorted(buckets)}, got {sorted(data.buckets)}; "
                "set data.buckets to them."
            )
        asked = None if data.degradations is None else asdict(data.degradations)
        if asked is not None and asked != (made := self.settings.get("degradations")):
            raise ValueError(
                f"expected data prepared with the degradations {asked}, got {made or 'none'}; set "
                f"data.degradations to these, or prepare it again with --degradations {asked['preset']}."
            )
        if data.clips is not None and (
            data.fps != self.settings["fps"] or data.max_frames > self.settings["frames"]
        ):
            raise ValueError(
                f"expected {self.settings['fps']:g} fps and at most {self.settings['frames']} frames, as the "
                f"data was prepared, got {data.fps:g} fps and {data.max_frames} frames; change data.fps and "
                "data.max_frames, or prepare again."
            )


def folder_of(path: Path) -> Path:
    """The folder of prepared data that `path`, a folder or a shard, is or lies in.

    Raises:
        ValueError: it is none.
    """
    for folder in (path, *path.absolute().parents[:2]):
        if (folder / Manifest.NAME).is_file():
            return folder
    raise ValueError(
        f"expected what `python -m training prepare` wrote, got {path} without a {Manifest.NAME} there or up "
        "to two folders above; prepare the data first."
    )


def digests(model: UniVid) -> dict[str, str]:
    """A SHA-256 of the configuration and weights of each part that encodes, as far as the model has it."""
    found = {}
    for name in PARTS:
        if (part := getattr(model, name)) is not None:
            digest = hashlib.sha256(json.dumps(asdict(part.config)).encode())
            for key, tensor in part.state_dict().items():
                digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            found[name] = digest.hexdigest()
    return found
