"""`python train_lora.py BASE PARTS OUT ...`, with the repository on the path: LoRAs as training makes them.

A process of its own, because training's packages have their own names there and not the pack's.
"""

import sys

import torch

from training.lora import LoraConfig, add_lora, save_lora
from univid.checkpoints import load
from univid.conditioning import Conditioning

STEPS = 4


def train(base: str, parts: str, out: str) -> None:
    """A few steps of AdamW towards random targets, on clips of 4 frames."""
    unet, generator = load(base, dtype=torch.float32, parts=("unet",)).unet, torch.Generator().manual_seed(0)
    config = LoraConfig(rank=4, alpha=6.0, parts=parts)
    add_lora(unet.train(), config, seed=1)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=0.05)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    for _ in range(STEPS):
        stream, extra = unet.config.image_stream, unet.config.in_channels - unet.config.out_channels
        cond = Conditioning(
            text=randn(1, 77, unet.config.context_dim),
            image=None if stream is None else randn(1, 65, stream.width),
            weights=torch.tensor([[1.0, 0.0 if stream is None else 1.0]]),
            concat=randn(1, extra, 4, 8, 8) if extra else None,
            numbers={name: torch.tensor([24.0]) for name in unet.config.numbers},
        )
        loss = (unet(randn(1, 4, 4, 8, 8), torch.tensor([500]), cond) - randn(1, 4, 4, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_lora(out, unet, config, base=base, steps=STEPS)


if __name__ == "__main__":
    for start in range(1, len(sys.argv), 3):
        train(*sys.argv[start : start + 3])
