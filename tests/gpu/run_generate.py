"""`generate` at full size with random weights: seconds by stage, memory, a longer and a larger clip, fp16."""

import statistics
import time

import torch
from torch import Tensor, nn

from univid.config import ModelConfig
from univid.guidance import Joint, Separate
from univid.model import UniVid
from univid.pipeline import Clip, Sampling, generate
from univid.presets import PAPER, PROFILES

from . import networks
from .section import Section, has
from .timing import GIB, peak_bytes, synchronize

STEPS = 4
CLIPS = Clip(24, 320, 576), Clip(48, 320, 576), Clip(24, 720, 1280)
SMALL_CLIPS = Clip(4, 64, 64), Clip(8, 64, 64), Clip(4, 96, 128)


class Tokens(nn.Module):
    """In the place of an encoder: random tokens `[b count width]`, for whatever it is given."""

    def __init__(self, count: int, width: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("tokens", torch.randn(1, count, width, device=device, dtype=dtype))

    def forward(self, given: list[str] | Tensor) -> Tensor:
        return self.tokens.expand(len(given), -1, -1)


def model_of(section: Section, config: ModelConfig, dtype: torch.dtype) -> UniVid:
    """A model with random weights, its encoders too, or what stands for them."""
    device, stream = section.device, config.unet.image_stream
    text, image = (
        Tokens(77, config.unet.context_dim, device, dtype), Tokens(257, stream.width, device, dtype),
    )  # fmt: skip
    if section.small or not has("open_clip"):
        why = "the networks are shrunk" if section.small else "open_clip is missing"
        section.skipped("encoders", f"{why}; random tokens stand for them")
    else:
        from univid.encoders import ImageEncoder, TextEncoder

        with torch.device("meta"):
            text, image = TextEncoder(config.text).to(dtype), ImageEncoder(config.vision).to(dtype)
        text, image = networks.filled(text, device), networks.filled(image, device)
    return UniVid(
        config, PROFILES["paper"], networks.unet_of(config.unet, device, dtype),
        networks.vae_of(config, device, dtype), text, image,
    ).to(device)  # fmt: skip


class Stages:
    """Seconds of each stage of one call of `generate`: it is the call's `callback`."""

    def __init__(self, device: torch.device):
        self.device, self.steps, self.decode, self.encode = device, [], 0.0, 0.0
        self.start = self.last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        synchronize(self.device)
        now, took = time.perf_counter(), time.perf_counter() - self.last
        self.last = now
        if stage == "encode":
            self.encode = took
        elif stage == "sample" and done:
            self.steps.append(took)
        elif stage == "decode":
            self.decode += took if done else 0.0


def run(section: Section) -> None:
    model = model_of(section, networks.preset(PAPER, section.small), section.dtype)
    clips = SMALL_CLIPS if section.small else CLIPS
    made(section, model, Clip(2, 64, 64), Joint(7.5))  # warms up
    for clip in clips:
        name = f"{clip.frames} frames of {clip.width} x {clip.height}"
        with section.part(name):
            measure(section, model, clip, name)
    with section.part("fp16"):
        video, _ = made(section, model.to(dtype=torch.float16), clips[0], Joint(7.5))
        section.result(
            "fp16: share of finite values", video.isfinite().float().mean().item(), bound=(">=", 1)
        )


def measure(section: Section, model: UniVid, clip: Clip, name: str) -> None:
    """A clip for its times under both kinds of guidance, and once more for its memory."""
    for guidance, guider in {"joint": Joint(7.5), "separate": Separate(7.5, 2.0)}.items():
        _, stages = made(section, model, clip, guider)
        steps = statistics.median(stages.steps[1:])
        section.result(f"{name}: a step, {guidance}", steps, "s")
    section.result(f"{name}: encode", stages.encode, "s")
    section.result(f"{name}: decode", stages.decode, "s")
    peak, _ = peak_bytes(lambda: made(section, model, clip, Joint(7.5)), section.device)
    section.result(f"{name}: peak, joint", peak / GIB, "GiB")


def made(section: Section, model: UniVid, clip: Clip, guider) -> tuple[Tensor, Stages]:
    stages = Stages(section.device)
    video = generate(
        model, "a horse gallops along a beach", torch.zeros(1, 3, 320, 576), guidance=guider,
        clip=clip, sampling=Sampling(steps=STEPS), callback=stages,
    )  # fmt: skip
    return video, stages
