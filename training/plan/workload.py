"""What a plan has to know of a run, and the passes that it counts of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from univid.conditioning import Conditioning
from univid.config import ModelConfig
from univid.encoders import ImageEncoder, TextEncoder
from univid.unet import UNet
from univid.vae import Autoencoder

from .meter import Cost, flash_attention, measure

VAE_CHUNK = 8  # frames that the autoencoder encodes at a time
LENGTHS = 5  # clip lengths that are counted; the others lie on the lines between them


@dataclass(frozen=True)
class Workload:
    """One training run of the U-Net.

    arrange: sets what is trained on a network without weights (`requires_grad`), and adds its adapters.
    batch: samples of one optimizer step by modality ("image", "frame", "video"). frames: the fewest and the
    most of a clip, all equally likely. buckets: (height, width) in pixels; the largest is counted.
    shows: beside a sample's text "picture", to the image stream, "copy", a poor one of the sample, to be led
    from, and "teacher", what a network of the same size answers. prepared: whether latents and tokens come
    from disk.
    frozen_dtype: of the U-Net's weights that are not trained. dataset: how many samples there are, by kind
    ("image", "clip").

    Raises:
        ValueError: no samples, no steps, impossible numbers of frames, or a frozen_dtype that does not run.
    """

    name: str
    model: ModelConfig
    arrange: Callable[[UNet], object]
    steps: int
    batch: Mapping[str, int]
    frames: tuple[int, int] = (8, 24)
    buckets: tuple[tuple[int, int], ...] = ((320, 576),)
    shows: tuple[str, ...] = ("picture",)
    prepared: bool = False
    dtype: torch.dtype = torch.bfloat16
    frozen_dtype: torch.dtype = torch.float32
    dataset: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not self.active or min(self.batch.values()) < 0 or self.steps < 1:
            raise ValueError(
                f"expected at least one step and samples in it, got {self.steps} and {dict(self.batch)}."
            )
        if unknown := sorted(set(self.batch) - {"image", "frame", "video"}):
            raise ValueError(f"the batch's modalities are image, frame and video, got {unknown}.")
        if not 1 <= self.frames[0] <= self.frames[1]:
            raise ValueError(f"expected 1 <= fewest <= most frames, got {self.frames}.")
        if self.frozen_dtype not in (torch.float32, self.dtype):
            raise ValueError(
                f"frozen_dtype must be float32 or the run's dtype {self.dtype}, got {self.frozen_dtype}."
            )

    @property
    def active(self) -> dict[str, int]:
        """The modalities that have samples."""
        return {modality: size for modality, size in self.batch.items() if size}

    @property
    def bucket(self) -> tuple[int, int]:
        return max(self.buckets, key=math.prod)

    def most_frames(self, modality: str) -> int:
        return self.frames[1] if modality == "video" else 1

    def lengths(self, modality: str) -> dict[int, float]:
        """Numbers of frames to count, and the weight of each in the mean over all lengths of a clip."""
        if modality != "video":
            return {1: 1.0}
        low, high = self.frames
        points = sorted({round(low + (high - low) * i / (LENGTHS - 1)) for i in range(LENGTHS)})
        weights = dict.fromkeys(points, 0.0)
        for frames in range(low, high + 1):
            right = min(point for point in points if point >= frames)
            left = max(point for point in points if point <= frames)
            share = (frames - left) / (right - left) if right > left else 0.0
            weights[left] += (1 - share) / (high - low + 1)
            weights[right] += share / (high - low + 1)
        return weights

    def network(self, checkpointing: bool = False) -> UNet:
        """The U-Net on the meta device, as this run trains it."""
        unet = UNet(self.model.unet, device="meta", attention=flash_attention).train()
        unet.checkpointing = checkpointing
        self.arrange(unet)
        for parameter in unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.frozen_dtype)
        if not any(parameter.requires_grad for parameter in unet.parameters()):
            raise ValueError(f"the run {self.name!r} trains no parameter; choose what it trains.")
        return unet

    def cost(self, unet: UNet, clips: int, frames: int) -> Cost:
        """One forward and backward pass of a micro-batch."""
        factor, config = self.model.vae.factor if self.model.vae else 8, self.model.unet
        height, width = (side // factor for side in self.bucket)
        x = torch.empty(clips, config.in_channels, frames, height, width, device="meta")
        noise = torch.empty(clips, config.out_channels, frames, height, width, device="meta")
        cond = Conditioning(
            text=torch.empty(clips, *self.text_shape, device="meta"),
            image=torch.empty(clips, *self.image_shape, device="meta") if self.shows_picture else None,
            # The network asks which streams are on, so these have contents.
            weights=torch.tensor([[1.0, float(self.shows_picture)]]).expand(clips, -1),
            numbers={name: torch.empty(clips, device="meta") for name in config.numbers},
        )
        timesteps = torch.empty(clips, dtype=torch.long, device="meta")

        def run() -> Tensor:
            error = unet(x, timesteps, cond).float() - noise
            return error.square().flatten(1).mean(1).mean()

        inputs = [tensor for tensor in (x, noise, timesteps, cond.text, cond.image) if tensor is not None]
        layers = unet.blocks() if unet.checkpointing else []
        return measure(run, unet.parameters(), inputs, dtype=self.dtype, layers=layers)

    @property
    def answers(self) -> int:
        """Forward passes beside the one that learns: two branches of a teacher's guidance, and what the
        network itself says at the nearer end of the teacher's step.
        """
        return 3 if "teacher" in self.shows else 0

    @property
    def shows_picture(self) -> bool:
        return "picture" in self.shows and self.model.unet.image_stream is not None

    @property
    def encoded(self) -> int:
        """How many clips the autoencoder encodes of a sample."""
        return 1 + ("copy" in self.shows)

    @property
    def text_shape(self) -> tuple[int, int]:
        length = self.model.text.context_length if self.model.text else 77
        return length, self.model.unet.context_dim

    @property
    def image_shape(self) -> tuple[int, int]:
        vision = self.model.vision
        tokens = 1 + (vision.image_size // vision.patch_size) ** 2 if vision else 257
        return tokens, self.model.unet.image_stream.width

    def sample_bytes(self, frames: int) -> int:
        """Bytes of a prepared sample in float16: latents, text tokens, and what else it shows."""
        vae = self.model.vae
        factor, channels = (vae.factor, vae.latent_channels) if vae else (8, 4)
        numbers = self.encoded * channels * frames * math.prod(self.bucket) // factor**2 + math.prod(
            self.text_shape
        )
        return 2 * (numbers + (math.prod(self.image_shape) if self.shows_picture else 0))


@dataclass(frozen=True)
class Frozen:
    """The autoencoder and the towers that raw data needs: bytes of weights, FLOPs and the most bytes at work.

    encode: FLOPs of the autoencoder for a frame. text, image: of a tower for a sample.
    """

    weights: int = 0
    encode: int = 0
    text: int = 0
    image: int = 0
    working: int = 0

    def flops(self, frames: float) -> float:
        """For one sample."""
        return self.encode * frames + self.text + self.image


def frozen_parts(workload: Workload) -> Frozen:
    """What encodes raw samples as they come; nothing where they are prepared."""
    if workload.prepared:
        return Frozen()
    model, dtype, (height, width) = workload.model, workload.dtype, workload.bucket
    with torch.device("meta"):
        vae = Autoencoder(model.vae).to(dtype)
        text = TextEncoder(model.text).to(dtype)
        vision = ImageEncoder(model.vision).to(dtype) if workload.shows_picture else None
        pixels = torch.empty(1, 3, VAE_CHUNK, height, width)
        ids = torch.empty(1, model.text.context_length, dtype=torch.long)
    parts = [part for part in (vae, text, vision) if part is not None]
    encoding = measure(lambda: vae.encode(pixels, chunk=VAE_CHUNK), vae.parameters(), [pixels])
    with torch.no_grad():
        reading = measure(lambda: text.tokens(ids), text.parameters(), [ids])
        if vision is None:
            looking = 0
        else:
            side = model.vision.image_size
            picture = torch.empty(1, 3, side, side, device="meta", dtype=dtype)
            looking = measure(lambda: vision.tokens(picture), vision.parameters(), [picture]).flops
    return Frozen(
        weights=sum(p.nbytes for part in parts for p in part.parameters()),
        encode=workload.encoded * encoding.flops // VAE_CHUNK,
        text=reading.flops,
        image=looking,
        working=encoding.peak,
    )
