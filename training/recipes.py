"""The recipes: each function returns one complete, frozen run."""

from collections.abc import Callable

from .config import OptimConfig, Recipe
from .variants import ABLATIONS


def tiny_vae() -> Recipe:
    return Recipe(
        name="tiny_vae",
        task="vae",
        seed=1,
        steps=3000,
        batch={"image": 16},
        optim=OptimConfig(lr=1.5e-3, weight_decay=0.0, warmup_steps=100, ema_decay=0.995),
        options={"kl_weight": 3e-4},
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
        dtype="bfloat16",
        log_every=10,
        save_every=500,
        validate_every=250,
    )


def tiny_images() -> Recipe:
    """Stage 1 begins with single frames: a tenth of a clip's cost, and they teach colour, shape and place."""
    return _tiny_unet(
        "tiny_images", task="t2v", start=None, seed=3, steps=1000, lr=1.5e-3, batch={"image": 128}
    )


def tiny_t2v() -> Recipe:
    """Every second frame: half the cost of a clip while motion is learnt."""
    return _tiny_unet(
        "tiny_t2v", task="t2v", start="tiny_images", seed=4, steps=2600, lr=1e-3, stride=2,
        batch={"image": 16, "video": 16},
    )  # fmt: skip


def tiny_adapters() -> Recipe:
    return _tiny_unet(
        "tiny_adapters",
        task="adapters",
        start="tiny_t2v",
        seed=6,
        steps=200,
        lr=1e-3,
        batch={"image": 16, "video": 8},
    )


def tiny_joint() -> Recipe:
    return _tiny_unet(
        "tiny_joint",
        task="joint",
        start="tiny_adapters",
        seed=7,
        steps=800,
        lr=1e-3,
        batch={"image": 16, "video": 8},
    )


def ablations() -> dict[str, Recipe]:
    """One equal, shorter budget for the built-in network and for it with a part taken away, by table row.

    All start from the same image model and see the same samples and noise, at every second frame.
    """
    return {
        variant: _tiny_unet(
            "ablation_" + variant.lower().replace(" ", "_"),
            task="t2v",
            start="tiny_images",
            start_spatial_only=True,
            preset=variant,
            seed=9,
            steps=800,
            lr=1e-3,
            stride=2,
            batch={"image": 8, "video": 16},
        )
        for variant in ABLATIONS
    }


def _tiny_unet(
    name: str,
    *,
    task: str,
    start: str | None,
    seed: int,
    steps: int,
    lr: float,
    batch: dict,
    stride: int = 1,
    preset: str = "tiny",
    start_spatial_only: bool = False,
) -> Recipe:
    return Recipe(
        name=name,
        task=task,
        seed=seed,
        steps=steps,
        batch=batch,
        optim=OptimConfig(lr=lr, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=100, ema_decay=0.998),
        options={
            "preset": preset,
            "vae": "tiny_vae",
            "towers": "tiny_towers",
            "start": start,
            "start_spatial_only": start_spatial_only,
            "data_seed": 8,
            "clips": 8000,
            "frames": 12,
            "frame_stride": stride,
            "loss_weights": {"image": 0.5, "video": 1.0},
        },
        dtype="bfloat16",
        log_every=10,
        save_every=250,
        validate_every=250,
    )


_BUILT_IN = (tiny_vae, tiny_towers, tiny_images, tiny_t2v, tiny_adapters, tiny_joint)
TINY = tuple(recipe.__name__ for recipe in _BUILT_IN)  # the built-in model, in this order
RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in _BUILT_IN} | {
    recipe.name: (lambda recipe=recipe: recipe) for recipe in ablations().values()
}
