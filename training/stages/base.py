"""The model that a run starts from, and its frozen parts, which turn pixels and words into latents."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from univid import checkpoints
from univid.checkpoints import built_in_path, native
from univid.checkpoints.opened import open_checkpoint
from univid.config import ModelConfig, SamplingProfile
from univid.devices import beside
from univid.initialization import initialize
from univid.model import UniVid
from univid.pipeline import grey_tokens
from univid.presets import PRESETS, PROFILES
from univid.unet import UNet

PLACES = 64  # of a file, where a few bytes are looked at
KEPT_CAPTIONS = 256  # tokens of one take 0.3 MB at full size
CHUNK = 8  # frames at a time in the autoencoder, and pictures in the vision tower


def load_base(base: str, seed: int) -> UniVid:
    """A model with all its parts on the CPU, in the types of its file: to be trained, or to encode.

    Args:
        base: a native checkpoint, a file of another library that names its model by its tensors, "built-in",
            or the name of a preset, whose weights are drawn from `seed`: to measure speed, or to learn on
            prepared data from nothing.

    Raises:
        ValueError: no such file, or one that cannot be read or is of no one model.
    """
    if base in PRESETS:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            config = PRESETS[base]
            parts = {
                name: part.build(getattr(config, part.field))
                for name, part in native.PARTS.items()
                if getattr(config, part.field) is not None
            }
        initialize(parts["unet"], seed)
        return UniVid(config, PROFILES[base], **parts, info={"source": f"preset {base}, random weights"})
    return checkpoints.load(_path(base))


def describe_base(base: str) -> tuple[ModelConfig, SamplingProfile]:
    """What `load_base` would give, and how it is sampled, without reading its weights.

    Raises:
        ValueError: as `load_base`.
    """
    if base in PRESETS:
        return PRESETS[base], PROFILES[base]
    opened = open_checkpoint(_path(base))
    return opened.config, opened.profile


def base_evidence(base: str) -> str:
    """Words that tell a base from another one, wherever it lies: its bytes, and a digest of some of them."""
    if base in PRESETS:
        return f"preset {base}"
    path = _path(base)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest, total = hashlib.sha256(), 0
    for file in files:
        size = file.stat().st_size
        total += size
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        digest.update(f"{name} {size} ".encode())
        with open(file, "rb") as opened:
            for place in range(PLACES):  # the first bytes describe all tensors, the others are some weights
                opened.seek(place * size // PLACES)
                digest.update(opened.read(4096))
    return f"a file of {total:,} bytes ({digest.hexdigest()[:12]})"


def _path(base: str) -> Path:
    path = built_in_path(base) if base in native.ASSETS else Path(base).expanduser()
    if not path.exists():
        raise ValueError(
            f"expected a checkpoint at {base}, or {native.BUILT_IN!r}, or one of the presets "
            f"{', '.join(PRESETS)}; got none there, set options.base."
        )
    return path


def trainable(unet: UNet) -> UNet:
    """A copy of a network in float32 and in memory of its own."""
    copy = UNet(unet.config, device="meta", dtype=torch.float32).to_empty(device="cpu")
    copy.load_state_dict(unet.state_dict())
    return copy


class Encoders:
    """A model's autoencoder and towers, frozen. A part moves to a device when it is first needed there.

    device: where the tensors of all answers are.
    """

    def __init__(self, model: UniVid, dtype: torch.dtype):
        self.model, self.device = model, torch.device("cpu")
        self.parts: dict[str, nn.Module] = {
            name: part.eval().requires_grad_(False).to(dtype)
            for name in ("vae", "text_encoder", "image_encoder")
            if (part := getattr(model, name)) is not None
        }
        self.captions: OrderedDict[str, Tensor] = OrderedDict()
        self.grey: Tensor | None = None

    def part(self, name: str) -> nn.Module:
        """One of "vae", "text_encoder" and "image_encoder", on the device.

        Raises:
            ValueError: the model has none.
        """
        if name not in self.parts:
            raise ValueError(
                f"expected a base with a {name.replace('_', ' ')}, got one without; take a checkpoint that "
                "holds all parts (`python -m univid import` puts them into one file)."
            )
        return self.parts[name].to(self.device)

    def here(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device, which is not waited for."""
        return beside(tensor, torch.empty(0, device=self.device))

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Frames uint8 `[b t h w 3]` to latents `[b c t h/8 w/8]`, the mean of what the autoencoder sees."""
        with self._as_they_are():
            video = rearrange(self._unit(pixels), "b t h w c -> b c t h w")
            return self.part("vae").encode(video, chunk=CHUNK).float()

    @torch.no_grad()
    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Pictures uint8 `[b h w 3]` to image tokens `[b m d]`."""
        with self._as_they_are():
            pictures = rearrange(self._unit(pixels), "b h w c -> b c h w")
            encoder = self.part("image_encoder")
            return torch.cat([encoder(some).float() for some in pictures.split(CHUNK)])

    @torch.no_grad()
    def text_tokens(self, captions: list[str]) -> Tensor:
        """Captions to text tokens `[b n d]`; those of the latest ones are remembered."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.captions]
        if new:
            with self._as_they_are():
                tokens = self.part("text_encoder")(new).float()
            self.captions.update(zip(new, tokens, strict=True))
        for caption in captions:
            self.captions.move_to_end(caption)
        found = torch.stack([self.captions[caption].to(self.device) for caption in captions])
        while len(self.captions) > KEPT_CAPTIONS:
            self.captions.popitem(last=False)
        return found

    @torch.no_grad()
    def null_image(self) -> Tensor | None:
        """Tokens `[1 m d]` of the grey picture that some models are shown instead of none; else None."""
        if self.model.profile.inputs.null_image != "grey":
            return None
        if self.grey is None:
            self.part("image_encoder")
            with self._as_they_are():
                self.grey = grey_tokens(self.model).float()
        return self.grey

    def whole(self, unet: nn.Module) -> UniVid:
        """The model with another network, all on the device."""
        for name in self.parts:
            self.part(name)
        model = self.model
        return UniVid(model.config, model.profile, unet, info=model.info, **self.parts)

    def _unit(self, pixels: Tensor) -> Tensor:
        return self.here(pixels).float() / 127.5 - 1

    def _as_they_are(self):
        """The loss runs under autocast; what is stored by `prepare`, and compared with, does not."""
        return torch.autocast(self.device.type, enabled=False)
