"""The recipes of the built-in model: each function returns one complete, frozen run."""

from collections.abc import Callable
from dataclasses import replace

from training.config import LogsConfig, OptimConfig, Recipe

from .options import ShapesOptions, ShownOptions, TowersOptions, VaeOptions, VisionOptions
from .stages import Adapters, Joint, Pictures, Steering, TextToVideo
from .variants import ABLATIONS


def tiny_vae() -> Recipe:
    return Recipe(
        name="tiny_vae",
        seed=1,
        steps=3000,
        batch={"image": 16},
        optim=OptimConfig(lr=1.5e-3, weight_decay=0.0, warmup_steps=100, ema_decay=0.995),
        options=VaeOptions(kl_weight=3e-4),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=400, validate_every=400),
    )


def tiny_towers() -> Recipe:
    return Recipe(
        name="tiny_towers",
        seed=2,
        steps=1600,
        batch={"video": 48},
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_steps=100, ema_decay=0.995),
        options=TowersOptions(),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=500, validate_every=250),
    )


def tiny_images() -> Recipe:
    """Stage 1 begins with single frames: a tenth of a clip's cost, and they teach colour, shape and place."""
    return _tiny_unet(
        "tiny_images", stage=TextToVideo, start=None, seed=3, steps=1000, lr=1.5e-3, batch={"image": 128}
    )


def tiny_places() -> Recipe:
    """Single frames that know their place in the clip: where a word of motion puts a shape, and when.

    That shows in the noisiest timesteps alone, and best where all paths lead through the middle: knowing
    word and place then explains a fifth of the variance, of all paths together only a twentieth.
    """
    return _tiny_unet(
        "tiny_places", stage=TextToVideo, start="tiny_images", seed=11, steps=500, lr=1.5e-3,
        batch={"image": 128},
        shown=ShownOptions(places=True, still_share=0.1, centered_share=0.9),
        timestep_shift={"image": 8.0, "video": 8.0},
    )  # fmt: skip


# From here on a frame knows its place, and most paths lead through the middle.
PLACED = {
    "shown": ShownOptions(places=True, centered_share=0.75),
    "timestep_shift": {"image": 3.0, "video": 3.0},
}
HALF = {"frame_stride": 2}  # every second frame: half the cost of a clip


def tiny_t2v() -> Recipe:
    return _tiny_unet(
        "tiny_t2v", stage=TextToVideo, start="tiny_places", seed=4, steps=1600, lr=1e-3, decay="constant",
        batch={"image": 16, "video": 16}, **(PLACED | HALF),
    )  # fmt: skip


def tiny_adapters() -> Recipe:
    return _tiny_unet(
        "tiny_adapters", stage=Adapters, start="tiny_t2v", seed=6, steps=150, lr=1e-3,
        batch={"image": 16, "video": 16}, **(PLACED | HALF),
    )  # fmt: skip


def tiny_joint() -> Recipe:
    return _tiny_unet(
        "tiny_joint", stage=Joint, start="tiny_adapters", seed=7, steps=1500, lr=1e-3, decay="constant",
        batch={"image": 16, "video": 16}, **(PLACED | HALF),
    )  # fmt: skip


def tiny_clips() -> Recipe:
    """Stage 3 ends on whole clips."""
    return _tiny_unet(
        "tiny_clips", stage=Joint, start="tiny_joint", seed=10, steps=500, lr=1e-3,
        batch={"image": 16, "video": 8}, **PLACED,
    )  # fmt: skip


# A single frame's picture is one of any frame of its clip, and single frames show what pictures say: noise.
PICTURED = {
    "shown": ShownOptions(places=True, picture_of_clip=True, centered_share=0.5),
    "timestep_shift": {"image": 8.0, "video": 3.0},
}


def tiny_pictures() -> Recipe:
    """Stage 3 again on single frames: what a picture shows is kept, in six times as many samples a minute."""
    return _tiny_unet(
        "tiny_pictures", stage=Pictures, start="tiny_clips", seed=12, steps=1200, lr=2e-3,
        batch={"image": 128},
        shown=ShownOptions(places=True, picture_of_clip=True, still_share=0.5, centered_share=0.25),
        timestep_shift={"image": 8.0, "video": 8.0},
    )  # fmt: skip


def tiny_vision() -> Recipe:
    """The vision tower once more, on twice as many frames: it told shapes apart in 89 frames of 100."""
    return Recipe(
        name="tiny_vision",
        seed=13,
        steps=1200,
        batch={"video": 128},
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup_steps=100, ema_decay=0.995),
        options=VisionOptions(start="tiny_towers"),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=300, validate_every=300),
    )


def tiny_steering() -> Recipe:
    """From here on with the better vision tower, clips and single frames with a picture side by side."""
    return _tiny_unet(
        "tiny_steering", stage=Steering, start="tiny_pictures", towers="tiny_vision", seed=14, steps=600,
        lr=1e-3, decay="constant", batch={"image": 48, "video": 16}, **(PLACED | PICTURED | HALF),
    )  # fmt: skip


def tiny_whole() -> Recipe:
    """The end: the same on whole clips."""
    return _tiny_unet(
        "tiny_whole", stage=Steering, start="tiny_steering", towers="tiny_vision", seed=15, steps=400,
        lr=1e-3, batch={"image": 48, "video": 8}, **(PLACED | PICTURED),
    )  # fmt: skip


def ablations() -> dict[str, Recipe]:
    """One equal, shorter budget for the built-in network and for it with a part taken away, by table row.

    All start from the same image model and see the same samples and noise, at every second frame.
    """
    return {
        variant: _tiny_unet(
            "ablation_" + variant.lower().replace(" ", "_"),
            stage=TextToVideo,
            start="tiny_places",
            preset=variant,
            seed=9,
            steps=500,
            lr=1e-3,
            batch={"image": 8, "video": 16},
            start_spatial_only=True,
            **(PLACED | HALF),
        )
        for variant in ABLATIONS
    }


def _tiny_unet(
    name: str,
    *,
    stage: type[ShapesOptions],
    start: str | None,
    seed: int,
    steps: int,
    lr: float,
    batch: dict,
    decay: str = "cosine",
    preset: str = "tiny",
    towers: str = "tiny_towers",
    **options,
) -> Recipe:
    return Recipe(
        name=name,
        seed=seed,
        steps=steps,
        batch=batch,
        optim=OptimConfig(
            lr=lr, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=100, decay=decay, ema_decay=0.998
        ),
        options=replace(
            stage(
                preset=preset,
                vae="tiny_vae",
                towers=towers,
                start=start,
                start_spatial_only=False,
                data_seed=8,
                clips=8000,
                frames=12,
                frame_stride=1,
                loss_weights={"image": 0.5, "video": 1.0},
                timestep_shift={"image": 1.0, "video": 1.0},
                shown=ShownOptions(),
            ),
            **options,
        ),
        dtype="bfloat16",
        logs=LogsConfig(every=10, save_every=250, validate_every=250),
    )


_BUILT_IN = (
    tiny_vae, tiny_towers, tiny_images, tiny_places, tiny_t2v, tiny_adapters, tiny_joint, tiny_clips,
    tiny_pictures, tiny_vision, tiny_steering, tiny_whole,
)  # fmt: skip
TINY = tuple(recipe.__name__ for recipe in _BUILT_IN)  # the built-in model, in this order
RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in _BUILT_IN} | {
    recipe.name: (lambda recipe=recipe: recipe) for recipe in ablations().values()
}
