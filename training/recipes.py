"""The recipes: each function returns one complete, frozen run."""

from collections.abc import Callable

from .config import OptimConfig, Recipe


def tiny_vae() -> Recipe:
    return Recipe(
        name="tiny_vae",
        task="vae",
        seed=1,
        steps=4400,
        batch={"image": 16},
        optim=OptimConfig(lr=1.5e-3, weight_decay=0.0, warmup_steps=100, ema_decay=0.995),
        options={"preset": "tiny", "kl_weight": 3e-4},
        dtype="bfloat16",
        log_every=10,
        save_every=400,
        validate_every=400,
    )


def tiny_towers() -> Recipe:
    return Recipe(
        name="tiny_towers",
        task="towers",
        seed=2,
        steps=1600,
        batch={"video": 48},
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_steps=100, ema_decay=0.995),
        options={"preset": "tiny"},
        dtype="bfloat16",
        log_every=10,
        save_every=500,
        validate_every=250,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"tiny_vae": tiny_vae, "tiny_towers": tiny_towers}
