"""Sample clips of a run, always from the same words, pictures and noise, so that steps can be compared."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from training import distributed
from training.options import SampleOptions
from univid.model import UniVid
from univid.pipeline import Clip, Sampling, Source, generate
from univid.sheet import save_sheet, sweep_sheet
from univid.video import write_video

log = logging.getLogger(__name__)
LABEL = 48  # letters of a prompt beside its clip
FRAMES_SHOWN = 6


def draw(
    model: UniVid,
    prompts: Sequence[str],
    pictures: Sequence[Tensor | None],
    videos: Sequence[Tensor | None],
    size: tuple[int, int, int],
    options: SampleOptions,
) -> list[Tensor]:
    """One clip `[1 3 t h w]` in -1..1 for each prompt and its picture `[1 3 h w]`.

    videos: what each starts from, `[1 3 t h w]`; size: (t, h, w) in pixels of those that start from nothing.
    Every process of a sharded network has to call this.
    """
    return [
        generate(
            model, prompt, picture, seed=options.seed, clip=Clip(*size) if video is None else Clip(),
            source=Source(video=video), sampling=Sampling(options.steps),
        )
        for prompt, picture, video in zip(prompts, pictures, videos, strict=True)
    ]  # fmt: skip


def write(
    clips: Sequence[Tensor], prompts: Sequence[str], folder: Path, step: int, fps: float, title: str
) -> None:
    """Write step_<n>.png, all clips on one page, and each as step_<n>_<i>.mp4; the first process does."""
    if distributed.rank():
        return
    try:
        _write(clips, prompts, folder, f"step_{step:08d}", fps, f"{title}, step {step}")
    except (ValueError, OSError) as error:  # a full disk costs pictures, and not the run
        log.warning("samples of step %d are not written: %s", step, error)


def _write(
    clips: Sequence[Tensor], prompts: Sequence[str], folder: Path, name: str, fps: float, title: str
) -> None:
    page = sweep_sheet(
        [[clip] for clip in clips],
        title=title,
        row_labels=[shortened(prompt) for prompt in prompts],
        column_labels=[""],
        frames_shown=FRAMES_SHOWN,
    )
    save_sheet(page, folder / f"{name}.png")
    for number, clip in enumerate(clips, start=1):
        write_video(clip, folder / f"{name}_{number}.mp4", fps)


def shortened(prompt: str) -> str:
    """A prompt as the label of a row."""
    return prompt if len(prompt) <= LABEL else prompt[: LABEL - 2] + " …"
