"""`sample`: a video for each prompt of a list, the same ones on any number of processes."""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training import distributed
from univid import cli_groups
from univid.cli import build_parser
from univid.cli_made import clip_settings, given_files, receipt
from univid.cli_shared import clip_size, common, load_model
from univid.cli_steer import steering
from univid.conditioning import check_weights
from univid.messages import shown
from univid.model import UniVid
from univid.pipeline import Clip, generate
from univid.receipt import Receipt
from univid.video import check_output, read_image, write_video

from . import manifest, prompts, vbench_environment
from .prompts import Row

NAMES = ("seed", "vbench")
SUFFIXES = {"mp4": ".mp4", "png": ""}
SCALES = ("guidance_scale", "text_guidance", "image_guidance")
MOST = 1_000_000


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `sample`."""
    parser = commands.add_parser(
        "sample", help="make a video for each prompt of a list: the papers', or one's own", allow_abbrev=False
    )
    group = parser.add_argument_group("what is made")
    group.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help=f"a list (.json, .jsonl, .txt), {prompts.UCF101} or {prompts.VBENCH}; an object in it may have "
        + ", ".join(prompts.KEYS),
    )
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    number = group.add_mutually_exclusive_group()
    number.add_argument("--samples", type=int, metavar="N", help="videos of each prompt (default: 1)")
    number.add_argument(
        "--clips", type=int, metavar="N", help="videos in all: through the list as often as that takes"
    )
    group.add_argument(
        "--names",
        choices=NAMES,
        default=NAMES[0],
        help="seed: the prompt's words and the seed; vbench: PROMPT-0 and so on (default: %(default)s)",
    )
    group.add_argument(
        "--format",
        choices=SUFFIXES,
        default="mp4",
        help="png: a folder of frames each, which loses nothing (default: %(default)s)",
    )
    group.add_argument(
        "--environment",
        type=Path,
        default=vbench_environment.default_folder(),
        metavar="FOLDER",
        help="where VBench is, for its list (default: %(default)s)",
    )
    weights = parser.add_argument_group("of rows that say nothing else")
    weights.add_argument("--negative", default="", metavar="TEXT", help="what to stay away from")
    weights.add_argument(
        "--text-weight", type=float, default=1.0, metavar="L", help="lambda_t, 0 or more (default: 1)"
    )
    weights.add_argument(
        "--image-weight", type=float, metavar="L", help="lambda_v, 0 or more (default: 1; only with pictures)"
    )
    cli_groups.guidance(parser)
    cli_groups.sampling(parser)
    steering(parser)
    cli_groups.size(parser)
    cli_groups.machine(parser, device=False)


def run(options: argparse.Namespace) -> str:
    """Make what is not there yet. Under torchrun every process takes its share.

    Raises:
        ValueError: prompts, checkpoint or settings that cannot be used, or a folder of others.
    """
    rows = prompts.read(options.prompts, options.environment)
    if options.image_weight is None:
        options.image_weight = 1.0
    elif all(row.image is None for row in rows):
        raise ValueError("--image-weight needs pictures, and no row has an image; leave it out.")
    videos = planned(rows, options)
    if distributed.rank() == 0:  # a look that leaves nothing, but writes a little
        check_output(options.out / f"clip{SUFFIXES[options.format]}", options.fps)
    maker = Maker(options, load_model(options), videos)
    with manifest.claimed(options.out, maker.settings(len(videos), rows)):
        # Whoever has more left to do gets help from the others: a barrier does not wait for hours.
        mine = videos[distributed.rank() :: distributed.processes()]
        left = [video.index for video in mine if not maker.is_there(video)]
        missing = sorted(i for given in distributed.gathered(json.dumps(left)) for i in json.loads(given))
        share = missing[distributed.rank() :: distributed.processes()]
        idle = not share or distributed.rank() > 0
        for index in tqdm(share, desc="sample", unit=" videos", disable=idle):
            maker.make(videos[index])
        distributed.barrier()
        if distributed.rank() == 0:
            manifest.write(options.out, [maker.entry(video) for video in videos])
    made = f"{len(missing):,} of them now" if missing else "all of them before"
    return f"{shown(options.out)}: {len(videos):,} videos of {len(rows):,} prompts, {made}"


@dataclass(frozen=True)
class Video:
    """One to make. sample: which of several of its row, from 0."""

    index: int
    row: Row
    sample: int
    seed: int
    file: str


def planned(rows: Sequence[Row], options: argparse.Namespace) -> list[Video]:
    """All videos: through the list once, then once more, so that a seed stays when more are asked for.

    Raises:
        ValueError: a number out of range, or names that cannot be or are not different.
    """
    samples = 1 if options.samples is None else options.samples
    number = len(rows) * samples if options.clips is None else options.clips
    if not 1 <= number <= MOST:
        raise ValueError(f"expected 1 to {MOST:,} videos, got {number:,}; change --samples or --clips.")
    if not 0 <= options.seed < 2**63 - number:
        raise ValueError(f"the seed must be a whole number from 0 to about 2^63, got {options.seed}.")
    if options.names == "vbench" and options.format != "mp4":
        raise ValueError("VBench reads videos alone; leave --format out.")
    videos, named = [], {}
    for index in range(number):
        sample, place = divmod(index, len(rows))
        row, seed = rows[place], options.seed + index
        if options.names == "vbench":
            name = manifest.vbench_name(row.prompt, sample)
        else:
            name = manifest.file_name(row.prompt or row.image.stem, seed)
        if named.setdefault(name, place) != place:
            raise ValueError(
                f"rows {named[name] + 1} and {place + 1} have one prompt, and these names are the prompts; "
                "take one out, or leave out --names vbench."
            )
        videos.append(Video(index, row, sample, seed, name + SUFFIXES[options.format]))
    return videos


class Maker:
    """Makes the videos with a model. options: the command's; what a row says stands in their places."""

    def __init__(self, options: argparse.Namespace, model: UniVid, videos: Sequence[Video]):
        self.out, self.model = options.out, model
        self.fps = model.profile.fps if options.fps is None else options.fps
        plain = build_parser().parse_args(["generate", "--out", "clip.mp4"])
        self.options = argparse.Namespace(**vars(plain) | vars(options))
        self.weights = given_files(self.options, [model], {"checkpoint": options.checkpoint})
        images = {video.row.image: argparse.Namespace(image=video.row.image, lora=()) for video in videos}
        self.images = {path: given_files(asked, [], {}) for path, asked in images.items()}
        for video in videos:
            if not video.sample:
                self._check(video)

    def _check(self, video: Video) -> None:
        try:
            asked, _ = self._asked(video)
            check_weights(asked.text_weight, asked.image_weight)
            clip_size(asked, self.model.profile)
        except ValueError as error:
            raise ValueError(f"row {video.index + 1}: {error}") from error

    def _asked(self, video: Video) -> tuple[argparse.Namespace, dict]:
        """The options of one video, and what `generate` takes of them."""
        said = {"prompt": video.row.prompt, "image": video.row.image, "seed": video.seed}
        if video.row.guidance is not None:  # scales of another kind would have no part
            said |= {name: getattr(video.row, name) for name in SCALES}
        asked = argparse.Namespace(**vars(self.options) | video.row.said() | said)
        return asked, common(asked, self.model.profile)

    def receipt(self, video: Video) -> Receipt:
        """That of `python -m univid generate`, which can make the video again."""
        asked, told = self._asked(video)
        settings = clip_settings(asked, self.model, told, clip_size(asked, self.model.profile)) | {
            "fps": self.fps,
            "text_weight": asked.text_weight,
            "image_weight": None if video.row.image is None else asked.image_weight,
        }
        files = (*self.weights, *self.images[video.row.image])
        return receipt(asked, "generate", settings, files)

    def settings(self, number: int, rows: Sequence[Row]) -> dict:
        """What all of them are made by, and of which list: JSON values."""
        weights, count = {}, {}
        for given in self.weights:
            count[given.role] = count.get(given.role, 0) + 1
            role = f"lora {count['lora']}" if given.role == "lora" else given.role
            said = {"name": given.name, "sha256": given.sha256, "strength": given.strength}
            weights[role] = {name: value for name, value in said.items() if value is not None}
        plain = Row(image=next((row.image for row in rows if row.image is not None), None))
        made = self.receipt(Video(0, plain, 0, self.options.seed, ""))
        listed = [row.said() | {"image": [given.sha256 for given in self.images[row.image]]} for row in rows]
        return {
            **weights,
            "settings": {name: value for name, value in made.settings.items() if name != "prompt"},
            "prompts": {
                "source": Path(self.options.prompts).name,
                "rows": len(rows),
                "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
            },
            "names": self.options.names,
            "format": self.options.format,
            "clips": number,
            "versions": dict(made.versions),
        }

    def is_there(self, video: Video) -> bool:
        """Whether it is made already; as `manifest.whole`."""
        asked, _ = self._asked(video)
        frames, *_ = clip_size(asked, self.model.profile)
        return manifest.whole(self.out / video.file, self.receipt(video), frames)

    def make(self, video: Video) -> None:
        """Make and write one video; its frames depend on nothing but its row and its seed."""
        asked, told = self._asked(video)
        frames, height, width = clip_size(asked, self.model.profile)
        made = generate(
            self.model,
            asked.prompt,
            None if video.row.image is None else read_image(video.row.image),
            text_weight=asked.text_weight,
            image_weight=asked.image_weight,
            clip=Clip(frames, height, width, asked.fps_number),
            **told,
        )
        write_video(made, self.out / video.file, self.fps, self.receipt(video).text())

    def entry(self, video: Video) -> dict:
        """Its line of the manifest."""
        asked, _ = self._asked(video)
        frames, *size = clip_size(asked, self.model.profile)
        row = {
            "file": video.file,
            "prompt": video.row.prompt,
            "seed": video.seed,
            "index": video.index,
            "sample": video.sample,
            "frames": frames,
            "fps": self.fps,
            "size": size,
        } | {name: value for name, value in video.row.said().items() if name not in ("prompt", "image")}
        if video.row.image is not None:
            row["image"] = _from(self.out, video.row.image)
            row |= {"text_weight": asked.text_weight, "image_weight": asked.image_weight}
        return row


def _from(folder: Path, path: Path) -> str:
    """A path as it is found from a folder."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


COMMANDS = {"sample": run}
