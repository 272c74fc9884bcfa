"""The networks of a run, from its saved states, or of checkpoint files, as something that makes videos."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.export import saved_recipe
from training.saved import FINAL, Damaged, read_final, read_state, states
from univid.checkpoints import built_in_path, load
from univid.messages import shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """One point of a curve.

    step: of training; None = nobody says. path: of a checkpoint, or of what the run in `run` saved.
    """

    name: str
    step: int | None
    path: Path
    run: Path | None = None

    @contextmanager
    def files(self) -> Iterator[tuple[Path | str, Path | None]]:
        """A checkpoint and the LoRA on it, if that is what was trained; those of a run are gone afterwards.

        Raises:
            ValueError: the state is damaged, or its base is gone.
        """
        if self.run is None:
            yield self.path, None
            return
        from training.stages.networks import write_result

        recipe = saved_recipe(self.run)
        try:
            saved = read_final(self.path) if self.path.name == FINAL else read_state(self.path)
        except Damaged as damage:
            raise ValueError(f"{shown(self.path)} is damaged: {damage}; move it away.") from damage
        with tempfile.TemporaryDirectory(prefix="univid_") as folder:
            made = Path(folder) / f"{self.name}.safetensors"
            write_result(recipe, self.run.parent, saved["ema"], int(saved["step"]), made)
            if recipe.options.lora is None:
                yield made, None
            else:
                base = recipe.options.base
                yield (built_in_path(base) if base.startswith("built-in") else base), made


def find_states(paths: Sequence[Path]) -> list[State]:
    """What there is of a run's folder, by step, or of checkpoint files, by their steps or as they are named.

    Raises:
        ValueError: neither, a run that has saved nothing, or one of the built-in model.
    """
    if len(paths) == 1 and paths[0].is_dir():
        return _of_run(paths[0])
    found = []
    for path in paths:
        step = load(path, parts=()).info.get("training_step", "")
        found.append(State(path.stem, int(step) if step.isdecimal() else None, path))
    steps = [state.step for state in found]
    if None not in steps and len(set(steps)) == len(steps):
        return sorted(found, key=lambda state: state.step)
    return [State(state.name, None, state.path) for state in found]


def _of_run(folder: Path) -> list[State]:
    if saved_recipe(folder) is None:
        raise ValueError(
            f"{shown(folder)} is a run of the built-in model, one part of it; write checkpoints by `export` "
            "and name those."
        )
    found = [State(path.name, int(path.name.partition("_")[2]), path, folder) for path in states(folder)]
    if (folder / FINAL).exists():
        try:
            step = int(read_final(folder / FINAL)["step"])
        except Damaged as damage:
            log.warning("%s is damaged and left out: %s", shown(folder / FINAL), damage)
        else:
            found = [state for state in found if state.step != step]
            found.append(State(f"step_{step:08d}", step, folder / FINAL, folder))
    if not found:
        raise ValueError(f"{shown(folder)} has no states yet; let the run reach its first one.")
    return sorted(found, key=lambda state: state.step)
