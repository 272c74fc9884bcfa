"""Makes the page: videos under neutral names, one file that shows them, and the key, which stays at home.

The page does not know whose a video is: it knows each by a name drawn at random, and votes name that. Every
video is written anew by one encoder, so that neither a kind of file nor what stands in one tells it.
"""

import base64
import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from univid.files.hashes import sha256
from univid.files.media import Unreadable
from univid.files.output import check_file, check_folder, new_file, new_folder
from univid.messages import shown
from univid.video import write_frames

from ..videos import Video
from .key import Key, KeyPair, key_path
from .pairs import Pair
from .questions import QUESTIONS

INDEX, MEDIA = "index.html", "media"
DIFFERENCES = ("size", "length", "frame rate")
CLOSE = 0.01  # of lengths and rates, by ratio: files round their times
HERE = Path(__file__).parent
TEMPLATES = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)


@dataclass(frozen=True)
class Made:
    """What became of `make_page`. differing: by each of DIFFERENCES, in how many pairs."""

    page: Path
    key: Path
    pairs: int
    differing: dict[str, int]


@dataclass(frozen=True)
class _Shown:
    """A video of the page. size: (height, width)."""

    size: tuple[int, int]
    frames: int
    fps: float


def choose_questions(pairs: Sequence[Pair], names: Sequence[str] | None) -> tuple[str, ...]:
    """The questions of a page: those that are wanted, None = all that at least one pair can be asked.

    Raises:
        ValueError: a wanted one that no pair can be asked.
    """
    possible = [name for name in QUESTIONS if any(_can_ask(pair, name) for pair in pairs)]
    for name in names or ():
        if name not in possible:
            raise ValueError(
                f"the question {name} needs a {QUESTIONS[name].needs}, and no video says its own; leave it "
                "out of --questions, or put a manifest.jsonl beside the videos."
            )
    return tuple(name for name in possible if not names or name in names)


def check_page(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse, before any work is done, a place at which `make_page` could not write.

    Raises:
        ValueError: a name of a file; as `check_folder`; a key that is there already.
    """
    if out.suffix.lower() in (".html", ".htm"):
        raise ValueError(
            f"expected a folder for the page and its videos, got {shown(out)}; name it without {out.suffix}."
        )
    check_folder(out)
    if key_path(out).exists():
        raise ValueError(f"{shown(key_path(out))} is the key of another page already; name another output.")
    check_file(key_path(out), inputs)


def make_page(
    pairs: Sequence[Pair], names: tuple[str, str], out: Path, questions: Sequence[str], seed: int, fps: float
) -> Made:
    """Write the folder of a page, and its key beside that folder.

    Args:
        names: of A and B, as the count will call them.
        questions: as `choose_questions` gives them.
        seed: of the pairs' order and the videos' names, and so of which of two names is A's.
        fps: of videos that do not say theirs; nan = there are none.

    Raises:
        ValueError: a video or picture that cannot be read, or a rate that nobody says; nothing is written.
    """
    rng = random.Random(seed)
    pairs = rng.sample(pairs, len(pairs))
    tokens = iter([f"{number:06x}" for number in rng.sample(range(16**6), 2 * len(pairs))])
    keyed = [KeyPair(pair.name, next(tokens), next(tokens)) for pair in pairs]
    with new_folder(out) as folder:
        (folder / MEDIA).mkdir()
        rows = [
            {"pair": number, **_row(pair, key, folder / MEDIA, fps)}
            | {"questions": [name for name in questions if _can_ask(pair, name)]}
            for number, (pair, key) in enumerate(zip(pairs, keyed, strict=True), 1)
        ]
        page = hashlib.sha256(json.dumps([rows, sha256(folder / MEDIA)]).encode()).hexdigest()[:16]
        asked = {name: QUESTIONS[name].ask for name in questions}
        (folder / INDEX).write_text(render({"page": page, "questions": asked, "pairs": rows}), "utf-8")
        with new_file(key_path(out)) as temporary:
            temporary.write_text(Key(page, names, seed, tuple(questions), tuple(keyed)).to_json(), "utf-8")
    differing = {kind: sum(kind in row["differ"] for row in rows) for kind in DIFFERENCES}
    return Made(out / INDEX, key_path(out), len(pairs), differing)


def render(data: dict) -> str:
    """The page as HTML: it may run its own script and show what lies beside it, and ask for nothing else."""
    parts = {name: (HERE / f"page.{name}").read_text("utf-8") for name in ("js", "css")}
    allowed = {name: _hash(text) for name, text in parts.items()}
    return TEMPLATES.get_template("page.html").render(data=data, parts=parts, allowed=allowed)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _can_ask(pair: Pair, question: str) -> bool:
    """Whether the pair has what the question is about."""
    needs = QUESTIONS[question].needs
    return needs is None or getattr(pair, needs) is not None


def _row(pair: Pair, key: KeyPair, media: Path, fps: float) -> dict:
    """Write a pair's files; what the page is to know of it."""
    named = {key.a: pair.a, key.b: pair.b}
    videos = sorted(named)  # names are drawn: neither their order nor that of writing says anything
    written = [_write(named[name], media / f"{name}.mp4", fps) for name in videos]
    ratios = [video.size[1] / video.size[0] for video in written]
    picture = None
    if pair.picture is not None:
        picture = media / f"{''.join(videos)}.png"
        _write_picture(pair.picture, picture)
    return {
        "videos": videos,
        "prompt": pair.prompt,
        "picture": picture and picture.name,
        "ratio": math.sqrt(math.prod(ratios)),
        "differ": _differences(*written),
    }


def _differences(a: _Shown, b: _Shown) -> list[str]:
    lengths = a.frames / a.fps, b.frames / b.fps
    differ = (a.size != b.size, not _close(*lengths), not _close(a.fps, b.fps))
    return [kind for kind, differs in zip(DIFFERENCES, differ, strict=True) if differs]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=CLOSE)


def _write(video: Video, path: Path, fps: float) -> _Shown:
    """Write a video as browsers play it, H.264 in 4:2:0: an odd side gets its last line twice."""
    frames, own = video.read()
    rate = fps if math.isnan(own) else own
    if math.isnan(rate):
        raise ValueError(f"{shown(video.path)} does not say its frames per second; give --fps.")
    size = frames.shape[1:3]
    if any(side % 2 for side in size):
        frames = np.pad(frames, [(0, 0), *((0, side % 2) for side in size), (0, 0)], mode="edge")
    write_frames(frames, path, rate)
    return _Shown(size, len(frames), rate)


def _write_picture(source: Path, path: Path) -> None:
    from univid.files.encode import encode_picture
    from univid.files.picture import read_picture

    try:
        encode_picture(read_picture(source), path)
    except Unreadable as error:
        raise ValueError(f"{shown(source)} cannot be read as a picture: {error}; give another.") from error
