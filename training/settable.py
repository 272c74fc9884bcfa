"""Which settings of a recipe can be given as words: also those of parts that it does not have by itself.

The command line shows what a default holds. A recipe for clips has no source of pictures and no samples of
them in its batch, so what is asked for is put in first, empty.
"""

from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_type_hints

from univid.config import BiasedNoiseProfile

from .config import Recipe
from .data.config import DegradationConfig, SourceConfig
from .data.samples import MODALITIES
from .lora import LoraConfig
from .options import DenoiseOptions, JoinedOptions

EMPTY = {  # parts that may be lacking; UniVG animates by these numbers
    SourceConfig: SourceConfig(()),
    LoraConfig: LoraConfig(),
    DegradationConfig: DegradationConfig(),
    BiasedNoiseProfile: BiasedNoiseProfile(600, 990),
    JoinedOptions: JoinedOptions("known"),
}
RENAMED = {"options.validation": "options.samples.validation"}  # settings by their earlier names
MODAL = ("batch", "engine.micro_batch")  # mappings whose keys are modalities; 0 samples are none


def renamed(words: list[str]) -> list[str]:
    """The words with settings by the names that they have now."""
    found = []
    for word in words:
        name, given, value = word.partition("=")
        now = RENAMED.get(name.removeprefix("--").replace("_", "-")) if name.startswith("--") else None
        found.append(f"--{now}{given}{value}" if now else word)
    return found


def settable(recipe: Recipe, words: list[str]) -> Recipe:
    """The recipe with room for every setting that the words name; for `--help` with room for pictures."""
    names = {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    if "help" in names:
        names |= {"options.data.images.paths", "options.data.clips.paths"}
        names |= {f"batch.{modality}" for modality in MODALITIES}
    if not isinstance(recipe.options, DenoiseOptions):
        return recipe
    for name in sorted(names):
        recipe = _with_room(recipe, name.split("."))
    return recipe


def _with_room(part: Any, path: list[str], above: str = "") -> Any:
    """A part of a recipe in which the setting at `path` can be changed, where there is such a setting."""
    head, rest = path[0], path[1:]
    if not rest or not is_dataclass(part) or head not in {field.name for field in fields(part)}:
        return part
    where, inner, more = f"{above}{head}", getattr(part, head), {}
    if where in MODAL and rest[0] in MODALITIES and rest[0] not in inner:
        inner = {**inner, rest[0]: 0 if where == "batch" else 1}
    elif inner is None:
        inner = EMPTY.get(_lacking(part, head))
        more = {"stage": "lora"} if isinstance(inner, LoraConfig) else {}  # the one that has a LoRA
    return replace(part, **{head: _with_room(inner, rest, f"{where}.")}, **more)


def _lacking(part: Any, name: str) -> type | None:
    """The dataclass that a field of a part holds where it is not None."""
    hint = get_type_hints(type(part))[name]
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((kind for kind in kinds if kind in EMPTY), None)


def settled(chosen: Recipe, asked: Recipe) -> Recipe:
    """What was chosen without the room that was not used; `asked` is the recipe before.

    Raises:
        ValueError: pictures were given, and no step takes any.
    """
    batch = {name: size for name, size in chosen.batch.items() if size or name in asked.batch}
    options = chosen.options
    if isinstance(options, DenoiseOptions) and isinstance(asked.options, DenoiseOptions):
        given = options.data.images is not None and asked.options.data.images is None
        if given and not batch.get("image"):
            raise ValueError(
                "expected pictures in each step, as data.images is given, got none; set --batch.image."
            )
    return replace(chosen, batch=batch)
