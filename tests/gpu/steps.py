"""Training steps as the loop takes them, on random latents and tokens, and what the plan says of them."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from training.config import EngineConfig, OptimConfig, Options, Recipe
from training.distributed import Network
from training.loop import build_optimizer, take_step
from training.lora import LoraConfig, add_lora, store_frozen
from training.plan import Cluster, Workload, plan
from training.state import State
from training.task import MicroBatch, parameter_groups
from univid.diffusion import NoiseSchedule, training_loss
from univid.presets import PAPER
from univid.unet import UNet

from . import networks
from .section import Section
from .timing import release


def everything(name: str) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained, and how. trains: whether the parameter of a name is; None = a LoRA beside them."""

    name: str
    trains: Callable[[str], bool] | None
    checkpointing: bool = False
    compile: bool = False

    def __str__(self):
        words = ["with checkpointing" if self.checkpointing else "without"]
        return ", ".join([self.name, *words, *(["compiled"] if self.compile else [])])

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig(checkpointing=self.checkpointing, compile=self.compile)

    def arrange(self, unet: UNet) -> None:
        """Mark what is trained."""
        if self.trains is None:
            add_lora(unet, LoraConfig(), seed=0)
            return
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(self.trains(name))


WHOLE = [Case("whole U-Net", everything, checkpointing) for checkpointing in (True, False)]
LORA = [Case("LoRA", None, checkpointing) for checkpointing in (True, False)]


class Run:
    """A run of a case: `step()` is one step of the loop, optimizer and moving average included."""

    def __init__(self, section: Section, case: Case):
        release(section.device)  # a run before this one holds itself in a cycle
        config, size = networks.preset(PAPER, section.small), networks.size_of(section.small)
        self.device, dtype = section.device, str(section.dtype).removeprefix("torch.")
        self.recipe = Recipe(
            "gpu-check", 0, 10**6, {"video": 1}, OptimConfig(lr=1e-5), Options(), case.engine, dtype
        )
        self.module = networks.unet_of(config.unet, self.device).train()
        case.arrange(self.module)
        if case.trains is None:
            store_frozen(self.module, section.dtype)
        self.schedule, self.prediction = NoiseSchedule(config.schedule), config.schedule.prediction
        self.inputs = networks.inputs_of(config.unet, size, self.device, clips=1)
        self.noise = torch.randn_like(self.inputs.x)
        self.network = Network(self, case.engine)
        self.state = State(self.module, build_optimizer(self.recipe.optim, parameter_groups(self.module)))

    def step(self) -> None:
        row = take_step(self.recipe, self, self.network, self.state, self.device)
        if "skipped" in row:
            raise FloatingPointError("the loss or the gradients were not finite")

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        yield MicroBatch("video", 1.0, self.inputs)

    def loss(self, inputs: networks.Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        def network(x: Tensor, timesteps: Tensor, cond) -> Tensor:
            how = {"reference_frames": inputs.reference_frames, "streams": inputs.streams}
            return self.module(x, timesteps, cond, **how)

        given = inputs.x, self.noise, inputs.timesteps, inputs.cond
        return training_loss(network, self.schedule, self.prediction, *given).mean(), {}


def planned(section: Section, case: Case) -> int:
    """Bytes that the plan finds for such a run on one GPU, without its reserve."""
    config, (frames, height, width) = networks.preset(PAPER, section.small), networks.size_of(section.small)
    factor = config.vae.factor
    workload = Workload(
        "gpu-check", config, case.arrange, steps=1, batch={"video": 1}, frames=(frames, frames),
        buckets=((height * factor, width * factor),), prepared=True, dtype=section.dtype,
        frozen_dtype=torch.float32 if case.trains else section.dtype,
    )  # fmt: skip
    return plan(workload, case.engine, Cluster(reserve=0)).total("one")
