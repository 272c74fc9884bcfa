"""What text and picture cost each other: how well clips agree with both, from lambda_t to lambda_v alone.

Each prompt comes with a picture of something else, and the weights go from (1, 0) over (1, 1) to (0, 1), each
clip always from the same noise. Agreement is the mean cosine between the frames of a clip and its prompt, or
its picture, in CLIP's space (CLIP-SIM and CLIP-I). A network that steers goes from one corner to the other,
and the further out the way bends, the less does the one cost of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from univid.asked import Clip, Sampling
from univid.messages import shown
from univid.model import UniVid
from univid.pipeline import generate
from univid.video import fit, from_uint8, to_uint8

from .towers import Towers


@dataclass(frozen=True, eq=False)
class Pair:
    """A prompt, a picture uint8 `[h w 3]` that shows something else, and words for where that is from."""

    prompt: str
    picture: np.ndarray
    source: str


@dataclass(frozen=True)
class Plan:
    """points: of the way, at least 2. batch: clips at a time. steps: of sampling; None = the profile's.

    Raises:
        ValueError: a number out of range.
    """

    points: int = 5
    seed: int = 0
    batch: int = 1
    steps: int | None = None

    def __post_init__(self):
        if self.points < 2 or self.batch < 1:
            raise ValueError(f"expected at least 2 points and a batch of at least 1, got {self}.")

    def weights(self) -> list[tuple[float, float]]:
        """(lambda_t, lambda_v) from (1, 0) to (0, 1), evenly; one of the two is always 1."""
        way = np.linspace(0, 2, self.points)
        return [(min(1.0, 2 - at), min(1.0, at)) for at in way.tolist()]


def check_model(model: UniVid) -> None:
    """Refuse, by a ValueError, a checkpoint that text and picture do not steer."""
    steers = model.unet is not None and model.config.unet.image_stream is not None
    if not steers or model.profile.inputs.concat != "none" or model.profile.start.from_video:
        raise ValueError(
            "expected a checkpoint that text and picture steer by their weights, got one that does without; "
            "take a UniVid one."
        )
    if model.vae is None or model.text_encoder is None or model.image_encoder is None:
        raise ValueError("expected a checkpoint that holds all parts, got one without VAE or towers.")


def own_pairs(model: UniVid, prompts: Sequence[str], plan: Plan) -> list[Pair]:
    """Prompts, each with a picture of what another says: the middle of a clip that the model makes of it.

    Raises:
        ValueError: fewer than two different prompts.
    """
    known = list(dict.fromkeys(prompts))
    if len(known) < 2:
        raise ValueError(
            f"expected at least 2 different prompts, got {len(known)}; add some, or give each row its image."
        )
    clips = make_clips(model, known, None, (1.0, 0.0), plan, "pictures")
    frames = {prompt: clip[len(clip) // 2] for prompt, clip in zip(known, clips, strict=True)}
    after = dict(zip(known, known[1:] + known[:1], strict=True))
    return [Pair(prompt, frames[after[prompt]], f"made of: {after[prompt]}") for prompt in prompts]


def make_clips(
    model: UniVid,
    prompts: Sequence[str],
    pictures: Sequence[np.ndarray] | None,
    weights: tuple[float, float],
    plan: Plan,
    title: str,
) -> list[np.ndarray]:
    """A clip uint8 `[t h w 3]` for each prompt, the i-th from the noise of seed + i."""
    profile, clips = model.profile, []
    spans = [range(i, min(i + plan.batch, len(prompts))) for i in range(0, len(prompts), plan.batch)]
    with tqdm(total=len(prompts), desc=title, unit="clip", mininterval=1) as bar:
        for span in spans:
            shown_ = None
            if pictures is not None:
                size = profile.height, profile.width
                shown_ = torch.cat([fit(from_uint8(pictures[i][None]), *size)[:, :, 0] for i in span])
            video = generate(
                model,
                [prompts[i] for i in span],
                shown_,
                text_weight=weights[0],
                image_weight=weights[1],
                seed=plan.seed + span[0],
                clip=Clip(),
                sampling=Sampling(steps=plan.steps),
            )
            clips += [to_uint8(one) for one in video.split(1)]
            bar.update(len(span))
    return clips


def measure(
    model: UniVid, pairs: Sequence[Pair], towers: Towers, plan: Plan
) -> tuple[dict, list[list[np.ndarray]]]:
    """The curve as JSON values; of each pair, uint8 `[h w 3]`, the picture and its clips' middle frames.

    points: of each the weights, and of text and picture the mean agreement with its 95 % interval. unrelated:
    the agreement of clips at the ends with the prompts, and pictures, of the others: what is worth nothing.

    Raises:
        ValueError: as `check_model`; no pairs.
    """
    check_model(model)
    if not pairs:
        raise ValueError("expected prompts, got none.")
    prompts, pictures = [pair.prompt for pair in pairs], [pair.picture for pair in pairs]
    size = model.profile.height, model.profile.width
    sized = np.stack([to_uint8(fit(from_uint8(picture[None]), *size))[0] for picture in pictures])
    words, seen = towers.words(prompts), towers.pictures(sized)  # [n e]
    points, tables, examples = [], [], [[picture] for picture in sized]
    for text_weight, image_weight in plan.weights():
        title = f"text {text_weight:g}, picture {image_weight:g}"
        clips = make_clips(model, prompts, pictures, (text_weight, image_weight), plan, title)
        frames = [towers.pictures(clip) for clip in clips]
        text, picture = (torch.stack([(one @ to.T).mean(0) for one in frames]) for to in (words, seen))
        tables.append((text, picture))  # [n n]: clip, prompt or picture
        points.append(
            {
                "text_weight": text_weight,
                "image_weight": image_weight,
                "text": mean(text.diagonal()),
                "picture": mean(picture.diagonal()),
                "clips": {"text": text.diagonal().tolist(), "picture": picture.diagonal().tolist()},
            }
        )
        for example, clip in zip(examples, clips, strict=True):
            example.append(clip[len(clip) // 2])
    other = torch.tensor([[one != another for another in prompts] for one in prompts])
    foreign = torch.tensor([[not np.array_equal(a, b) for b in sized] for a in sized])
    unrelated = {"text": _mean_of(tables[0][0], other), "picture": _mean_of(tables[-1][1], foreign)}
    rows = [{"prompt": pair.prompt, "picture": pair.source} for pair in pairs]
    return {"clip": towers.name, "points": points, "unrelated": unrelated, "rows": rows}, examples


def mean(values: Tensor) -> dict[str, float | None]:
    """The mean with its 95 % interval by Student's t; of one value there is none."""
    from scipy.stats import t

    n, value = len(values), values.double().mean().item()
    if n < 2:
        return {"value": value, "low": None, "high": None}
    half = t.ppf(0.975, n - 1).item() * values.double().std().item() / n**0.5
    return {"value": value, "low": value - half, "high": value + half}


def _mean_of(table: Tensor, chosen: Tensor) -> float | None:
    return table[chosen].mean().item() if chosen.any() else None


def report(found: dict) -> str:
    """A Markdown table of the curve."""
    lines = ["| lambda_t | lambda_v | agrees with the text | agrees with the picture |", "| ---: " * 4 + "|"]
    for point in found["points"]:
        cells = [f"{point['text_weight']:g}", f"{point['image_weight']:g}"]
        lines.append(f"| {' | '.join(cells + [_cell(point[of]) for of in ('text', 'picture')])} |")
    if None not in found["unrelated"].values():
        cells = [f"{found['unrelated'][of]:.3f}" for of in ("text", "picture")]
        lines.append(f"| unrelated | | {' | '.join(cells)} |")
    return "\n".join([*lines, shown(f"cosines, {len(found['rows'])} prompts, {found['clip']}", 200)])


def _cell(figure: dict) -> str:
    interval = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{interval}"
