"""From a workload, an engine and a cluster to a plan: pure arithmetic on what was counted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training.config import EngineConfig

from .account import LAYOUTS, account, messages, weights_of
from .hardware import Cluster
from .workload import Workload, frozen_parts

# Bytes that the optimizer and the EMA read and write for a trained parameter, all float32: read weight,
# gradient, two moments and EMA, write all of them but the gradient; the norm reads the gradient once more.
OPTIMIZER_TRAFFIC = 4 * (5 + 4 + 1)
# Assumed of raw samples: a JPEG of 512 pixels as img2dataset keeps it; Panda-70M's 6 M clips are 4.8 TB.
RAW_BYTES = {"image": 100_000, "clip": 800_000}
DECODE_SECONDS = {"image": 0.005, "clip": 0.09}  # on one core; the clip is measured (640 x 360, 24 frames)
COPY_SECONDS = 0.22  # likewise, for a poor copy of a million pixels (measured, light: 1280 x 720, 24 frames)
KIND = {"image": "image", "frame": "clip", "video": "clip"}


@dataclass(frozen=True)
class Plan:
    """Everything that `report` prints.

    memory: bytes by part, for each layout of "one", "ddp", "fsdp". parameters: of the U-Net, trained, frozen.
    sample_flops: of a sample's passes by modality, mean over the lengths; encoding: FLOPs of a sample's
    autoencoder and towers; forward: of the U-Net's forward pass at the most frames.
    passes: of one GPU in a step. sent: bytes that each GPU sends in a step, by layout.
    """

    workload: Workload
    engine: EngineConfig
    cluster: Cluster
    micro_batch: Mapping[str, int]
    memory: Mapping[str, Mapping[str, int]]
    parameters: tuple[int, int]
    sample_flops: Mapping[str, float]
    encoding: Mapping[str, float]
    forward: int
    passes: int
    sent: Mapping[str, float]

    @property
    def step_flops(self) -> float:
        """Of all GPUs."""
        batch = self.workload.active
        return sum(size * (self.sample_flops[m] + self.encoding[m]) for m, size in batch.items())

    @property
    def compute_seconds(self) -> float:
        return self.step_flops / (self.cluster.gpus * self.cluster.kind.flops * self.cluster.mfu)

    @property
    def optimizer_seconds(self) -> float:
        shards = self.cluster.gpus if self.engine.parallel == "fsdp" else 1
        return OPTIMIZER_TRAFFIC * self.parameters[0] / shards / self.cluster.kind.bandwidth

    @property
    def network_seconds(self) -> float:
        return self.sent[self.engine.parallel] / self.cluster.slowest_link

    @property
    def step_seconds(self) -> float:
        """Messages travel while the GPU computes, so the longer of the two counts; then the optimizer."""
        return max(self.compute_seconds, self.network_seconds) + self.optimizer_seconds

    @property
    def days(self) -> float:
        return self.workload.steps * self.step_seconds / 86400

    @property
    def samples(self) -> dict[str, int]:
        return {modality: size * self.workload.steps for modality, size in self.workload.active.items()}

    def total(self, layout: str) -> int:
        """Bytes of one GPU's memory, the reserve included."""
        return sum(self.memory[layout].values()) + self.cluster.reserve

    def rate(self, modality: str) -> float:
        """Samples per second of all GPUs."""
        return self.workload.active[modality] / self.step_seconds

    def core_seconds(self, modality: str) -> float:
        """Of one core for a raw sample: to decode it, and to make its poor copy if it has one."""
        seconds = DECODE_SECONDS[KIND[modality]]
        if "copy" in self.workload.shows:
            frames = sum(weight * frames for frames, weight in self.workload.lengths(modality).items())
            seconds += COPY_SECONDS * frames * math.prod(self.workload.bucket) / 1e6
        return seconds

    def loaded_bytes(self, modality: str) -> float:
        """Of one sample as it is read."""
        if not self.workload.prepared:
            return RAW_BYTES[KIND[modality]]
        return self.workload.sample_bytes(1 if modality == "image" else self.workload.frames[1])

    def stored_bytes(self, prepared: bool) -> dict[str, float]:
        """Of the whole dataset by kind, raw or prepared."""
        frames = {"image": 1, "clip": self.workload.frames[1]}
        return {
            kind: count * (self.workload.sample_bytes(frames[kind]) if prepared else RAW_BYTES[kind])
            for kind, count in self.workload.dataset.items()
        }


def plan(workload: Workload, engine: EngineConfig, cluster: Cluster) -> Plan:
    """Count what a run needs. Takes about half a minute at full size, on any machine.

    Raises:
        ValueError: a batch that does not divide over the GPUs.
    """
    shares = {}
    for modality, size in workload.active.items():
        if size % cluster.gpus:
            raise ValueError(
                f"{size} samples of {modality} a step do not divide over {cluster.gpus} GPUs; change either."
            )
        shares[modality] = size // cluster.gpus
    micro = {m: min(share, engine.micro_batch.get(m, share)) for m, share in shares.items()}
    passes = sum(math.ceil(shares[m] / micro[m]) for m in shares)

    unet = workload.network(engine.checkpointing)
    weights = weights_of(unet)
    frozen = frozen_parts(workload)
    teacher = (weights.trained + weights.frozen) * workload.dtype.itemsize if workload.answers else 0
    counted = {}

    def cost(clips: int, frames: int):
        if (clips, frames) not in counted:
            counted[clips, frames] = workload.cost(unet, clips, frames)
        return counted[clips, frames]

    largest = [cost(micro[m], workload.most_frames(m)) for m in shares]
    flops, encoding = {}, {}
    for modality in shares:
        lengths = workload.lengths(modality)
        flops[modality] = sum(
            weight * (cost(1, frames).flops + workload.answers * cost(1, frames).forward)
            for frames, weight in lengths.items()
        )
        encoding[modality] = frozen.flops(sum(weight * frames for frames, weight in lengths.items()))
    most = max(workload.most_frames(m) for m in shares)
    return Plan(
        workload, engine, cluster, micro,
        memory={
            layout: account(layout, cluster.gpus, weights, largest, frozen, passes > 1, teacher)
            for layout in LAYOUTS
        },
        parameters=(weights.trained, weights.frozen),
        sample_flops=flops, encoding=encoding, forward=cost(1, most).forward, passes=passes,
        sent={
            layout: messages(layout, cluster.gpus, weights, passes) for layout in LAYOUTS
        },
    )  # fmt: skip
