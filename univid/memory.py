"""What a call takes of the memory, counted before it is made; `machine.py` says what there is.

On the meta device tensors have sizes and no contents. There a network of any size runs in a moment, while a
ledger adds up what lives. What it finds for one latent cell holds for any number of them: attention keeps no
matrix of pairs, and all else grows with the cells.
"""

import contextlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .conditioning import Conditioning
from .config import ModelConfig, UNetConfig, VAEConfig
from .layers import CPU_TOKENS, TOKENS, FeedForward
from .machine import free_memory
from .steer import Steering
from .unet import UNet
from .vae import CHUNK, Autoencoder

CPU = torch.device("cpu")
GB = 1e9
FRAMES, SIDE = 4, 16  # of the latents that are counted
HALVINGS = 6  # of all tokens, to the smallest share of them that a feed-forward is counted with
# glibc keeps freed tensors of less than 32 MB, where they seldom fit the next ones: measured, up to this.
KEPT_SHARE, KEPT_MOST = 0.3, 128 * 2**20
# Of a finished clip: float32, and once more for what is made of it, 8-bit frames and a palette's picture.
CLIP_BYTES = 4 + 2
SPARE = 0.1  # of an estimate, where it decides how much the VAE takes at once
LEAST_TILE = 32  # latent cells: smaller tiles see too little of a frame


class Ledger(TorchDispatchMode):
    """Keeps the account of the storages that live, in bytes by kind.

    live: {kind: bytes}; peak: the same at the moment of the highest sum; peak_activations: the most of that
    kind alone. What was there before (weights, inputs) is not in it.
    """

    def __init__(self):
        super().__init__()
        self.live = {"activations": 0, "copies": 0}
        self.peak = dict(self.live)
        self.peak_activations = 0
        self.kind = "activations"
        self._entries: dict[int, weakref.ref] = {}

    def known(self, tensors: list[Tensor]) -> None:
        """Leave these out of the account: they are counted elsewhere."""
        for tensor in tensors:
            self._entries[tensor.untyped_storage()._cdata] = weakref.ref(tensor.untyped_storage())

    @contextlib.contextmanager
    def naming(self, kind: str) -> Iterator[None]:
        """What begins to live in the block is of this kind."""
        before, self.kind = self.kind, kind
        yield
        self.kind = before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        self._see(0)
        return out

    def _see(self, scratch: int) -> None:
        """Compare with the peaks; scratch: bytes that a kernel takes beside what lives."""
        now = {**self.live, "activations": self.live["activations"] + scratch}
        if sum(now.values()) > sum(self.peak.values()):
            self.peak = now
        self.peak_activations = max(self.peak_activations, now["activations"])

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._entries:
            return
        kind, size = self.kind, storage.nbytes()

        def leave(_) -> None:
            self.live[kind] -= size
            del self._entries[key]

        self.live[kind] += size
        self._entries[key] = weakref.ref(storage, leave)


class KernelLedger(Ledger):
    """Also counts a convolution's copies of input and output where channels are not last.

    Those of a CPU, and of cuDNN, whose kernels want channels last: what `generate` takes of an H200 is then
    estimated 1 to 3 % too low, without them 12 to 24 % (tests/test_memory.py).
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if function is torch.ops.aten.convolution.default:
            x, kernel = args[0], args[1]
            if kernel.shape[2:].numel() > 1 and not x.is_contiguous(memory_format=torch.channels_last):
                self._see(x.nbytes + out.nbytes)
        return out


class Kernels(TorchFunctionMode):
    """Attention by a kernel that keeps no matrix of pairs; the meta device would choose the plain formula."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return function(*args, **(kwargs or {}))


def activations(config: UNetConfig, cells: int, dtype: torch.dtype, tokens: int = CPU_TOKENS) -> int:
    """Bytes that one forward pass of the U-Net takes beside its weights.

    Args:
        cells: latent cells of all frames, clips and branches of guidance together.
        tokens: that its feed-forwards take at once.
    """
    share = min(1.0, max(2.0**-HALVINGS, tokens / max(1, cells)))
    halvings = math.floor(-math.log2(share))
    upper = _bytes_a_cell(config, dtype, halvings)
    if share == 2.0**-halvings:
        return round(upper * cells)
    lower = _bytes_a_cell(config, dtype, halvings + 1)
    # The most of several things that grow with the share lies on or below the line between two of its points.
    return round((lower + (upper - lower) * (share * 2 ** (halvings + 1) - 1)) * cells)


def sampling(config: UNetConfig, cells: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that a step takes on a device beside the weights; cells: as of `activations`."""
    tokens = CPU_TOKENS if device.type == "cpu" else TOKENS
    return with_kept(activations(config, cells, dtype, tokens), device)


def kept(config: UNetConfig, steering: Steering, cells: int, dtype: torch.dtype) -> int:
    """Bytes that a run keeps where it reuses deep blocks; cells: as of `activations`, of whole frames."""
    if not steering.reuses:
        return 0
    # What flows into an output block is what the one before it gives, at the size of its own level.
    blocks = config.num_res_blocks + 1
    levels = [level for level in reversed(range(len(config.channel_mult))) for _ in range(blocks)]
    first = len(levels) - steering.reuse.blocks
    channels = config.model_channels * config.channel_mult[levels[max(0, first - 1)]]
    return channels * math.ceil(cells / config.factors[levels[first]] ** 2) * dtype.itemsize


def with_kept(size: int, device: torch.device) -> int:
    """Bytes of activations, and of freed memory that a CPU's allocator keeps beside them."""
    return size + (min(round(KEPT_SHARE * size), KEPT_MOST) if device.type == "cpu" else 0)


@dataclass(frozen=True)
class Pieces:
    """What the VAE takes at once: frames, and the side of a tile in latent cells, None = whole frames."""

    chunk: int = CHUNK
    tile: int | None = None


@dataclass(frozen=True)
class Coding:
    """The VAE at work on frames of (h, w) latent cells.

    way: "encode" or "decode".
    """

    config: VAEConfig
    way: str
    frames: int
    size: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def needed(self, pieces: Pieces) -> int:
        """Bytes that it takes in such pieces beside the weights, and beside the clip."""
        cells = math.prod(side if pieces.tile is None else min(side, pieces.tile) for side in self.size)
        cells *= min(pieces.chunk, self.frames)
        return with_kept(round(_bytes_a_coded_cell(self.config, self.way, self.dtype) * cells), self.device)

    def pieces(self, free: int | None) -> Pieces:
        """The largest that fit into `free` bytes, whole frames first; else the smallest. None = nobody knows.

        Chunks change nothing of the result but its rounding; tiles do, a little.
        """
        if free is None:
            return Pieces()
        for pieces in self._all():
            if self.needed(pieces) * (1 + SPARE) <= free:
                break
        return pieces

    def least(self) -> Pieces:
        """The smallest."""
        return self._all()[-1]

    def _all(self) -> list[Pieces]:
        tiles = range(max(self.size) - 1, LEAST_TILE - 1, -1)
        return [Pieces(n) for n in range(CHUNK, 0, -1)] + [Pieces(1, side) for side in tiles]


def needed(
    config: ModelConfig,
    *,
    clips: int,
    branches: int,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device = CPU,
    pieces: Pieces | None = None,
    tile: int | None = None,
    steering: Steering = Steering(),  # noqa: B008 (it is frozen)
) -> int:
    """Bytes that `generate` takes on a device beside the weights; on a CPU with the finished clips.

    size: (t, h, w) of the clips in pixels. tile: pixels a side that the network sees at once, None = whole
        frames. pieces: that the VAE decodes in; None = the smallest. Encoding a
    video to start from takes less than decoding.
    """
    frames, *sides = size
    height, width = (side // config.vae.factor for side in sides)
    seen = math.prod(
        side if tile is None else min(side, tile // config.vae.factor) for side in (height, width)
    )
    cells = clips * branches * frames * seen
    coding = Coding(config.vae, "decode", clips * frames, (height, width), dtype, device)
    sampled, decoded = sampling(config.unet, cells, dtype, device), coding.needed(pieces or coding.least())
    calls = branches + (1 if steering.temporal_guidance else 0)
    sampled += kept(config.unet, steering, clips * calls * frames * height * width, dtype)
    if device.type == "cpu":
        return max(sampled, decoded) + finished(clips, size)
    values = 3 * clips * math.prod(size)
    clip = values * dtype.itemsize  # on the device, at the end a second time in float32
    return max(sampled, decoded + clip, clip + 4 * values)


def finished(clips: int, size: tuple[int, int, int]) -> int:
    """Bytes of clips (t, h, w) as `generate` returns them, and of what is made of them to write them."""
    return clips * math.prod(size) * 3 * CLIP_BYTES


def check(needed: int, what: str, advice: str, device: torch.device = CPU) -> None:
    """Refuse what does not fit into a device's free memory, where it says how much that is.

    what: ends in its verb, as "3 frames need".

    Raises:
        ValueError: "`what` about ... GB of memory, and ... GB are free; `advice`."
    """
    there = free_memory(device)
    if there is not None and needed > there:
        memory = "memory" if device.type == "cpu" else f"memory on {device}"
        raise ValueError(
            f"{what} about {needed / GB:,.1f} GB of {memory}, and {there / GB:,.1f} GB are free; {advice}."
        )


@lru_cache(maxsize=32)
def _bytes_a_cell(config: UNetConfig, dtype: torch.dtype, halvings: int) -> float:
    """With feed-forwards that take 1 / 2^halvings of the tokens at once."""
    unet, stream = _unet(config, dtype), config.image_stream
    clips, text_tokens, image_tokens = 1, 2, 2  # what all frames share is not worth counting
    with torch.device("meta"):
        x = torch.empty(clips, config.in_channels, FRAMES, SIDE, SIDE, dtype=dtype)
        text = torch.empty(clips, text_tokens, config.context_dim, dtype=dtype)
        image = None if stream is None else torch.empty(clips, image_tokens, stream.width, dtype=dtype)
        timesteps, numbers = torch.empty(clips), {name: torch.empty(clips) for name in config.numbers}
    weights = torch.tensor([[1.0, float(image is not None)]])  # the network asks which of its streams are on
    cond = Conditioning(text=text, image=image, weights=weights, numbers=numbers)
    cells = FRAMES * SIDE**2
    for layer in unet.modules():
        if isinstance(layer, FeedForward):
            layer.tokens = cells >> halvings
    return _peak(unet, lambda: unet(x, timesteps, cond)) / cells


@lru_cache(maxsize=4)
def _unet(config: UNetConfig, dtype: torch.dtype) -> UNet:
    return UNet(config, device="meta", dtype=dtype).requires_grad_(False)


@lru_cache(maxsize=16)
def _bytes_a_coded_cell(config: VAEConfig, way: str, dtype: torch.dtype) -> float:
    side = config.factor * SIDE
    with torch.device("meta"):
        vae = Autoencoder(config).to(dtype).requires_grad_(False)
        latents = torch.empty(FRAMES, config.latent_channels, SIDE, SIDE, dtype=dtype)
        images = torch.empty(FRAMES, config.in_channels, side, side, dtype=dtype)
    run = {"decode": lambda: vae.decode_images(latents), "encode": lambda: vae.encode_moments(images)}[way]
    return _peak(vae, run) / (FRAMES * SIDE**2)


@torch.no_grad()
def _peak(module: nn.Module, run) -> int:
    ledger = KernelLedger()
    ledger.known(list(module.parameters()))
    with Kernels(), ledger:
        run()
    return ledger.peak_activations
