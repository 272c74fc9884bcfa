"""The GPUs that a plan may name, with their makers' figures, and a cluster of them."""

import math
from dataclasses import dataclass

from univid.messages import shown

GIB = 2**30
MOST_GPUS = 1_000_000


@dataclass(frozen=True)
class Gpu:
    """flops: dense bf16 products summed in float32, per second. memory: bytes. bandwidth: of the memory, and
    link: to the other GPUs of its node, one way, bytes per second.
    """

    flops: float
    memory: int
    bandwidth: float
    link: float


# NVIDIA's data sheets and architecture white papers (H100, H200, A100, L40S; GA102, Ada and RTX Blackwell for
# the GeForce cards). Sheets that name the rate with sparsity are halved. link: NVLink, or PCIe x16.
GPUS = {
    "h200": Gpu(989.4e12, 141 * GIB, 4.8e12, 450e9),
    "h100": Gpu(989.4e12, 80 * GIB, 3.35e12, 450e9),  # SXM
    "h100-pcie": Gpu(756e12, 80 * GIB, 2.0e12, 64e9),
    "a100-80": Gpu(312e12, 80 * GIB, 2.039e12, 300e9),  # SXM
    "a100-40": Gpu(312e12, 40 * GIB, 1.555e12, 300e9),  # SXM
    "l40s": Gpu(362.05e12, 48 * GIB, 0.864e12, 32e9),
    "5090": Gpu(209.5e12, 32 * GIB, 1.792e12, 64e9),
    "4090": Gpu(165.2e12, 24 * GIB, 1.008e12, 32e9),
    "3090": Gpu(71e12, 24 * GIB, 0.936e12, 32e9),
}


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind, and what is assumed of them.

    mfu: share of the GPU's peak at which all FLOPs that are executed run, those that are computed again
        included. network: bytes per second between nodes, for each GPU, one way. reserve: bytes of memory
        for the driver's context, the kernels' work space, message buffers and gaps between allocations.

    Raises:
        ValueError: an unknown GPU, or numbers that cannot be.
    """

    gpu: str = "h100"
    gpus: int = 1
    mfu: float = 0.35
    per_node: int = 8
    network: float = 50e9
    reserve: int = 2 * GIB

    def __post_init__(self):
        if self.gpu not in GPUS:
            raise ValueError(f"gpu must be one of {', '.join(GPUS)}, got {self.gpu!r}.")
        if not (1 <= self.gpus <= MOST_GPUS and 1 <= self.per_node <= MOST_GPUS):
            raise ValueError(
                f"expected 1 to {MOST_GPUS:,} GPUs, in all and a node, got {shown(self.gpus)}, "
                f"{shown(self.per_node)}."
            )
        if not 0 < self.mfu <= 1:
            raise ValueError(
                f"mfu, the share of the GPU's peak, must be above 0 and at most 1, got {self.mfu}."
            )
        if not 0 < self.network < math.inf or self.reserve < 0:
            raise ValueError(
                f"expected a network above 0 and a reserve of at least 0, got {self.network}, {self.reserve}."
            )

    @property
    def kind(self) -> Gpu:
        return GPUS[self.gpu]

    @property
    def slowest_link(self) -> float:
        """Bytes per second that a ring through all GPUs moves: its slowest link's."""
        return self.kind.link if self.gpus <= self.per_node else min(self.kind.link, self.network)
