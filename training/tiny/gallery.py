"""Two pictures for the README: samples of every task, and a grid of text weight against picture weight.

Nothing is chosen by hand: the samples are the first clips of the evaluation's rows.
"""

import os
from pathlib import Path

import torch
from PIL import Image

from univid.checkpoints import load
from univid.model import UniVid
from univid.pipeline import generate
from univid.sheet import PAPER, contact_sheet, save_sheet, sweep_sheet
from univid.video import from_uint8

from .evaluate import ROWS, conditions

SAMPLES = (("T2V, seen", 2), ("I2V", 1), ("(T+I)2V", 2))  # row, clips
CONFLICT = "text 1, picture 1"
WEIGHTS = (0.0, 0.5, 1.0)
FRAMES = 6  # shown of a clip


def write_gallery(checkpoint: str | os.PathLike, folder: Path) -> list[Path]:
    """Write samples.png and steering.png into `folder` and return their paths.

    Raises:
        ValueError: the checkpoint cannot be read, or the folder cannot be written.
    """
    model = load(checkpoint, dtype=torch.float32)
    pages = {"samples.png": samples(model), "steering.png": steering(model)}
    for name, page in pages.items():
        save_sheet(page, folder / name)
    return [folder / name for name in pages]


def samples(model: UniVid) -> Image.Image:
    """Clips from text, from a picture and from both, one below the other."""
    strips = []
    for name, count in SAMPLES:
        row = ROWS[name]
        for index, asked in enumerate(conditions(row, range(count), model.profile)):
            picture = None if asked.picture is None else from_uint8(asked.picture[None])[:, :, 0]
            prompt = asked.text.caption if asked.text else ""
            video = generate(model, prompt, picture, seed=row.seed + index)
            shown = torch.linspace(0, video.shape[2] - 1, min(FRAMES, video.shape[2])).round().long()
            strips.append(
                contact_sheet(
                    video[:, :, shown],
                    title=f"{name.split(',')[0]}: {prompt or 'a picture alone'}",
                    labels=[f"frame {k + 1}" for k in shown.tolist()],
                    reference=picture,
                )
            )
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        page.paste(strip, (page.width - strip.width, top))
        top += strip.height
    return page


def steering(model: UniVid) -> Image.Image:
    """A text and a picture that disagree, under every pair of weights."""
    row = ROWS[CONFLICT]
    asked = conditions(row, range(1), model.profile)[0]
    picture = from_uint8(asked.picture[None])[:, :, 0]

    def clip(text_weight: float, image_weight: float) -> torch.Tensor:
        return generate(
            model,
            asked.text.caption,
            picture,
            text_weight=text_weight,
            image_weight=image_weight,
            seed=row.seed,
        )

    return sweep_sheet(
        [[clip(text, image) for image in WEIGHTS] for text in WEIGHTS],
        title=asked.text.caption,
        row_labels=[f"text {weight:g}" for weight in WEIGHTS],
        column_labels=[f"picture {weight:g}" for weight in WEIGHTS],
        reference=picture,
    )
