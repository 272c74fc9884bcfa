"""What a base cannot learn, or not from such data, refused before a run begins."""

from training.config import Recipe
from training.data.samples import MODALITIES
from training.options import DenoiseOptions
from univid.config import KNOWN, check_start
from univid.model import UniVid

from .networks import STAGES, modes_of, starts_from_video, trained_profile


def _check_biased(options: DenoiseOptions, base: UniVid) -> None:
    profile = trained_profile(options, base)
    check_start(base.config, profile)
    if profile.start.biased_noise is None:
        return
    concat = profile.inputs.concat
    if concat != "first" and (concat != "none" or options.data.degradations is None):
        raise ValueError(
            f"biased noise leads to a clip from the picture in its every frame, which {options.base} is not "
            'given, or from a poor copy; take a base with concat latents "first", or one with none and set '
            "data.degradations."
        )
    if options.lora is not None and profile.start != base.profile.start:
        raise ValueError(
            f"a LoRA cannot change where sampling starts, got biased noise that {options.base} lacks; leave "
            "noise.biased out, or take another stage."
        )


def _check_stage(options: DenoiseOptions, base: UniVid, held: list[str]) -> None:
    """What a stage of the cascade cannot do without, and poor copies that no sample would show."""
    stage, concat = STAGES[options.stage], base.profile.inputs.concat
    biased, degradations = trained_profile(options, base).start.biased_noise, options.data.degradations
    if stage.takes and concat not in stage.takes:
        raise ValueError(
            f"stage {options.stage!r} needs joined latents {' or '.join(stage.takes)}, got {concat}; change "
            "options.joined, or take another base."
        )
    if stage.upscales and (biased is None or degradations is None):
        raise ValueError(
            f"stage {options.stage!r} needs biased noise and degradations, got {biased} and {degradations}; "
            "set options.noise.biased and options.data.degradations."
        )
    if stage.upscales and "video" not in held:
        raise ValueError(
            f"stage {options.stage!r} is one of clips, got a step of {' and '.join(held)} alone; set "
            "batch.video."
        )
    if degradations is not None and (biased is None or concat != "none"):
        raise ValueError(
            "poor copies are for biased noise of a base without joined latents, got biased noise "
            f"{biased} and joined latents {concat}; leave data.degradations out."
        )
    if starts_from_video(trained_profile(options, base)) and options.samples.prompts:
        raise ValueError(
            "sample clips of a model that makes a video from another start from clips of the data, got "
            "samples.prompts; leave these out."
        )


def _check_distill(options: DenoiseOptions, base: UniVid) -> None:
    if options.noise.distill is not None and base.profile.start.from_video:
        raise ValueError(
            f'stage "distill" is for models that begin with noise alone, got {options.base}, which begins '
            "with a video; take another base."
        )


def check(recipe: Recipe, base: UniVid) -> None:
    """Refuse what a base cannot learn, or not from such data.

    Raises:
        ValueError: in one sentence.
    """
    options, unet, inputs = recipe.options, base.config.unet, base.profile.inputs
    held = [modality for modality, size in recipe.batch.items() if size]
    if unknown := [modality for modality in held if modality not in MODALITIES]:
        raise ValueError(f"the modalities of a batch are {', '.join(MODALITIES)}, got {', '.join(unknown)}.")
    if not any(options.loss_weights.get(modality, 1.0) for modality in held):
        raise ValueError(
            f"expected a step with samples whose loss counts, got a batch of {dict(recipe.batch)} and "
            f"loss_weights {dict(options.loss_weights)}; raise either."
        )
    pictures = any(mode[1][1] for mode in modes_of(options, base))
    if pictures and unet.image_stream is None:
        raise ValueError(
            f"stage {options.stage!r} shows pictures, and {options.base} has no image stream; give it one "
            "with `python -m univid import --extend`, or set options.modes to shares of none and text."
        )
    for part, needed in (
        ("text_encoder", True),  # for the empty prompt, also where the data is prepared
        ("image_encoder", inputs.null_image == "grey"),
    ):
        if needed and getattr(base, part) is None:
            raise ValueError(
                f"expected a base with a {part.replace('_', ' ')}, got {options.base} without; take a "
                "checkpoint that holds all parts."
            )
    stills = [modality for modality in held if modality != "video"]
    if unet.temporal.kind == "family" and stills:
        raise ValueError(
            f"the temporal layers of {options.base} take part in single frames too, so these cannot train "
            f"its spatial layers alone; set {' and '.join(f'batch.{m}' for m in stills)} to 0."
        )
    if options.parts in ("temporal", "temporal-attention") and stills:
        raise ValueError(
            f"single frames train none of the parts {options.parts!r}, got some of them in a step; set "
            f"{' and '.join(f'batch.{m}' for m in stills)} to 0."
        )
    if inputs.concat not in ("none", *KNOWN) and options.data.reference != "first":
        raise ValueError(
            f"{options.base} animates a clip's first frame, got data.reference {options.data.reference!r}; "
            'set it to "first".'
        )
    _check_stage(options, base, held)
    _check_biased(options, base)
    _check_distill(options, base)
