"""Counter-based randomness: what is drawn depends on where it is used, never on what was drawn before.

A run that was cut, or one that is spread over another number of processes, then draws the same numbers.
"""

import hashlib

import torch


def seed_for(seed: int, stream: str, position: int) -> int:
    """A 63-bit seed from a hash of (seed, stream, position), equal on every machine and in every process."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stream: str, position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose (`stream`: "noise", "timestep" ...) at one place of the run.

    `position` is the global number of the sample (or of the step, for what a whole step shares).
    torch's CPU generator keeps 32 bits of a seed, so among millions of positions a few share their numbers;
    that is harmless for noise on different samples, and not good enough where uniqueness matters.
    """
    return torch.Generator(device).manual_seed(seed_for(seed, stream, position))
