"""Whether weights over the plane keep things apart: the subject of a picture, the surroundings of a sentence.

    python -m tests.bench_regions --clips 100

As the workflow weights_by_region: lambda_v 1 in a box around the picture's shape, lambda_t 1.5 outside of it,
and a sentence that names a background alone, another one than the picture's. The control has the same weights
everywhere. Read back by the built-in model's scorer.
"""

import argparse

import numpy as np
import torch
from tqdm import tqdm

from training.tiny import shapes
from training.tiny.evaluate import ROWS, conditions
from training.tiny.scorer import read
from training.tiny.table import share
from univid import generate, load
from univid.steer import Masks
from univid.video import to_uint8

ROW = ROWS["text 1, picture 1"]  # pictures that the sentence contradicts
ROOM = 9  # pixels around the shape
TEXT_WEIGHT = 1.5


def box(picture: np.ndarray) -> torch.Tensor:
    """1 around what differs from the corner of a picture `[h w 3]`: `[1 h w]`."""
    differs = np.abs(picture.astype(int) - picture[0, 0]).sum(-1) > 60
    mask = torch.zeros(1, *differs.shape)
    rows, columns = (
        slice(max(0, found[0] - ROOM), found[-1] + ROOM + 1)
        for found in (np.flatnonzero(differs.any(axis)) for axis in (1, 0))
    )
    mask[:, rows, columns] = 1
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100, metavar="N")
    args = parser.parse_args()
    model = load(dtype=torch.float32)
    print("| weights | subject as in the picture | background as in the sentence | both |")
    print("| --- | ---: | ---: | ---: |")
    for name in ("by region", "the same everywhere"):
        subject, background = [], []
        for index, asked in enumerate(tqdm(conditions(ROW, range(args.clips), model.profile), leave=False)):
            inside = box(asked.picture)
            video = generate(
                model,
                f"something on a {asked.text.background} background",
                shapes.to_video(torch.from_numpy(asked.picture)[None, None])[:, :, 0],
                text_weight=TEXT_WEIGHT,
                masks=Masks(1 - inside, inside) if name == "by region" else Masks(),
                seed=ROW.seed + index,
            )
            found = read(to_uint8(video))
            subject.append((found.color, found.shape) == (asked.shown.color, asked.shown.shape))
            background.append(found.background == asked.text.background)
        both = np.logical_and(subject, background)
        cells = (share(list(values)) for values in (subject, background, both))
        print(
            f"| {name} | " + " | ".join(
                f"{100 * c['value']:.0f} [{100 * c['low']:.0f}, {100 * c['high']:.0f}]" for c in cells
            ) + " |",
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
