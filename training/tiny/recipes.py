"""The recipes of the built-in model: each function returns one complete, frozen run.

Each has two budgets, one for two CPU cores and one for a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from training.config import LogsConfig, OptimConfig, Options, Recipe

from .options import COUNTED, ShapesOptions, ShownOptions, TowersOptions, VaeOptions, VisionOptions
from .stages import Adapters, Joint, Known, Pictures, Steering, TextToVideo
from .variants import ABLATIONS

SHORT = {5: 0.2, 8: 0.5, 12: 0.3}  # most of what a clip is can be learned from few frames, at half the cost
ANY = {5: 0.05, 8: 0.1, 12: 0.4, 16: 0.1, 24: 0.15, 32: 0.1, 45: 0.1}
COMPARED = {5: 0.2, 8: 0.5, 12: 0.2, 32: 0.1}  # the ablation is scored at 12 and 32; short clips are many


@dataclass(frozen=True)
class Budget:
    """What a machine affords: steps, their learning rate, and single frames and clips of one step."""

    steps: int
    lr: float
    image: int = 0
    video: int = 0


def tiny_vae(gpu: bool = False) -> Recipe:
    budget = Budget(2000, 3e-3, image=256) if gpu else Budget(3000, 1.5e-3, image=16)
    return _recipe(
        "tiny_vae", gpu, budget, seed=1, options=VaeOptions(kl_weight=3e-4),
        optim=OptimConfig(lr=budget.lr, weight_decay=0.0, ema_decay=0.995),
    )  # fmt: skip


def tiny_towers(gpu: bool = False) -> Recipe:
    """Contrastively: the text tower is right after this, the vision tower tells shapes apart in 89 of 100."""
    budget = Budget(1000, 2e-3, video=256) if gpu else Budget(1600, 1e-3, video=48)
    return _recipe("tiny_towers", gpu, budget, seed=2, options=TowersOptions(), optim=_of_towers(budget))


def tiny_vision(gpu: bool = False) -> Recipe:
    """The vision tower once more, on twice as many frames, against fixed captions."""
    budget = Budget(1000, 2e-3, video=256) if gpu else Budget(1200, 1e-3, video=128)
    options = VisionOptions(start="tiny_towers")
    return _recipe("tiny_vision", gpu, budget, seed=13, options=options, optim=_of_towers(budget))


def tiny_images(gpu: bool = False) -> Recipe:
    """Stage 1 begins with single frames: a tenth of a clip's cost, and they teach colour, shape and place."""
    budget = Budget(600, 3e-3, image=512) if gpu else Budget(1000, 1.5e-3, image=128)
    return _unet("tiny_images", gpu, budget, stage=TextToVideo, start=None, seed=3)


def tiny_places(gpu: bool = False) -> Recipe:
    """Single frames that know their place in the clip: where a word of motion puts a shape, and when.

    That shows in the noisiest timesteps alone, and best where all paths lead through the middle: knowing
    word and place then explains a fifth of the variance, of all paths together only a twentieth.
    """
    budget = Budget(400, 3e-3, image=512) if gpu else Budget(500, 1.5e-3, image=128)
    return _unet(
        "tiny_places", gpu, budget, stage=TextToVideo, start="tiny_images", seed=11,
        shown=ShownOptions(places=True, still_share=0.1, centered_share=0.9),
        timestep_shift={"image": 8.0, "video": 8.0},
    )  # fmt: skip


# From here on a frame knows its place, and most paths lead through the middle.
PLACED = {
    "shown": ShownOptions(places=True, centered_share=0.75),
    "timestep_shift": {"image": 3.0, "video": 3.0},
}


def tiny_t2v(gpu: bool = False) -> Recipe:
    budget = Budget(800, 2e-3, image=512, video=256) if gpu else Budget(1600, 1e-3, image=16, video=8)
    return _unet(
        "tiny_t2v", gpu, budget, stage=TextToVideo, start="tiny_places", seed=4, decay="constant",
        lengths=SHORT, **PLACED,
    )  # fmt: skip


def tiny_adapters(gpu: bool = False) -> Recipe:
    budget = Budget(100, 2e-3, image=512, video=256) if gpu else Budget(150, 1e-3, image=16, video=8)
    return _unet(
        "tiny_adapters", gpu, budget, stage=Adapters, start="tiny_t2v", seed=6, lengths=SHORT, **PLACED
    )


def tiny_joint(gpu: bool = False) -> Recipe:
    budget = Budget(800, 2e-3, image=512, video=256) if gpu else Budget(2000, 1e-3, image=16, video=8)
    return _unet(
        "tiny_joint", gpu, budget, stage=Joint, start="tiny_adapters", seed=7, decay="constant",
        lengths=SHORT, **PLACED,
    )  # fmt: skip


# A single frame's picture is one of any frame of its clip, and single frames show what pictures say: noise.
PICTURED = {
    "shown": ShownOptions(places=True, picture_of_clip=True, centered_share=0.5),
    "timestep_shift": {"image": 8.0, "video": 3.0},
}


def tiny_pictures(gpu: bool = False) -> Recipe:
    """Stage 3 again on single frames: what a picture shows is kept, in six times as many samples a minute."""
    budget = Budget(600, 4e-3, image=512) if gpu else Budget(1200, 2e-3, image=128)
    return _unet(
        "tiny_pictures", gpu, budget, stage=Pictures, start="tiny_joint", seed=12,
        shown=ShownOptions(places=True, picture_of_clip=True, still_share=0.5, centered_share=0.25),
        timestep_shift={"image": 8.0, "video": 8.0},
    )  # fmt: skip


def tiny_lengths(gpu: bool = False) -> Recipe:
    """From here on clips of any length, and single frames with a picture beside them."""
    budget = Budget(1500, 1.5e-3, image=512, video=256) if gpu else Budget(1000, 1e-3, image=32, video=16)
    return _unet(
        "tiny_lengths", gpu, budget, stage=Steering, start="tiny_pictures", seed=14, decay="constant",
        lengths=ANY, **PICTURED,
    )  # fmt: skip


def tiny_steady(gpu: bool = False) -> Recipe:
    """The end: the same, ever more slowly."""
    budget = Budget(1000, 1.5e-3, image=512, video=256) if gpu else Budget(700, 1e-3, image=32, video=16)
    return _unet(
        "tiny_steady", gpu, budget, stage=Steering, start="tiny_lengths", seed=15, lengths=ANY,
        warmup_steps=1, **PICTURED,
    )  # fmt: skip


def tiny_known(gpu: bool = False) -> Recipe:
    """The expert that animates a picture, makes frames in between, goes on with a clip, and closes a loop."""
    budget = Budget(800, 1.5e-3, video=256) if gpu else Budget(1500, 1e-3, video=16)
    return _unet(
        "tiny_known", gpu, budget, stage=Known, start="tiny_steady", seed=16, lengths=ANY,
        shown=ShownOptions(whole_share=0.4, centered_share=0.25), timestep_shift={"video": 3.0},
    )  # fmt: skip


def ablations(gpu: bool = False) -> dict[str, Recipe]:
    """One equal, shorter budget for the built-in network and for it with a part taken away, by table row.

    All start from the spatial layers of the shipped checkpoint, an image model that is the same wherever
    one of them is trained, and see the same samples and noise: on two CPU cores 33,000 clips.
    """
    budget = Budget(2000, 2e-3, image=64, video=160) if gpu else Budget(1400, 1e-3, image=8, video=16)
    return {
        variant: _unet(
            "ablation_" + variant.lower().replace(" ", "_"), gpu, budget, stage=TextToVideo,
            start=TINY[-1], preset=variant, seed=9, start_spatial_only=True, lengths=COMPARED, **PLACED,
        )
        for variant in ABLATIONS
    }  # fmt: skip


def _of_towers(budget: Budget) -> OptimConfig:
    return OptimConfig(lr=budget.lr, weight_decay=0.05, ema_decay=0.995)


def _unet(
    name: str,
    gpu: bool,
    budget: Budget,
    *,
    stage: type[ShapesOptions],
    start: str | None,
    seed: int,
    decay: str = "cosine",
    warmup_steps: int = 100,
    preset: str = "tiny",
    **options,
) -> Recipe:
    known = stage(
        preset=preset,
        vae="tiny_vae",
        towers="tiny_vision",
        start=start,
        start_spatial_only=False,
        data_seed=8,
        clips=8000 if gpu else 4000,
        moments=45,
        lengths={COUNTED: 1.0},
        loss_weights={"image": 0.5, "video": 1.0},
        timestep_shift={"image": 1.0, "video": 1.0},
        shown=ShownOptions(),
    )
    optim = OptimConfig(
        lr=budget.lr, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=warmup_steps, decay=decay,
        ema_decay=0.998,
    )  # fmt: skip
    return _recipe(name, gpu, budget, seed=seed, options=replace(known, **options), optim=optim)


def _recipe(
    name: str, gpu: bool, budget: Budget, *, seed: int, options: Options, optim: OptimConfig
) -> Recipe:
    return Recipe(
        name=name,
        seed=seed,
        steps=budget.steps,
        batch={kind: size for kind in ("image", "video") if (size := getattr(budget, kind))},
        optim=optim,
        options=options,
        # Many CPUs compute in bfloat16 without instructions for it: one without them took 14 times as long.
        dtype="bfloat16" if gpu else "float32",
        logs=LogsConfig(every=10, save_every=250, validate_every=250),
    )


_BUILT_IN = (
    tiny_vae, tiny_towers, tiny_vision, tiny_images, tiny_places, tiny_t2v, tiny_adapters, tiny_joint,
    tiny_pictures, tiny_lengths, tiny_steady,
)  # fmt: skip
TINY = tuple(recipe.__name__ for recipe in _BUILT_IN)  # the built-in model, in this order


def _ablation(variant: str, gpu: bool = False) -> Recipe:
    return ablations(gpu)[variant]


EXPERTS = (tiny_known.__name__,)

RECIPES: dict[str, Callable[..., Recipe]] = {
    **{recipe.__name__: recipe for recipe in (*_BUILT_IN, tiny_known)},
    **{recipe.name: partial(_ablation, variant) for variant, recipe in ablations().items()},
}
