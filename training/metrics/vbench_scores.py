"""`vbench`: the figures of VBench (2311.17982) on a folder of videos, by its own package.

The package runs in an environment of its own, a process for each dimension: one that fails takes no other
with it. It sees the videos under its own names, by links in a temporary folder.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training import distributed
from training.folder import write_json
from univid.files.output import check_file
from univid.messages import shown

from . import manifest, vbench_environment

CLIP_B, CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
GRIT = ("grit_model/grit_b_densecap_objectdet.pth",)
VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz")
DINO = ("dino_model/dino_vitbase16_pretrain.pth", "dino_model/facebookresearch_dino_main/hubconf.py")
NEEDS = {  # dimension: the files that it needs in VBENCH_CACHE_DIR
    "subject_consistency": DINO,
    "background_consistency": (CLIP_B,),
    "temporal_flickering": (),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": (CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
    "object_class": GRIT,
    "multiple_objects": GRIT,
    "human_action": ("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
    "color": GRIT,
    "spatial_relationship": GRIT,
    "scene": ("caption_model/tag2text_swin_14m.pth",),
    "temporal_style": VICLIP,
    "appearance_style": (CLIP_B,),
    "overall_consistency": VICLIP,
}
# Those that know what a video should show from VBench's own list or names.
OWN_PROMPTS = (
    "object_class", "multiple_objects", "human_action", "color", "spatial_relationship", "scene",
    "appearance_style",
)  # fmt: skip
MODES = {"standard": "vbench_standard", "custom": "custom_input"}
SAMPLES = 5  # of a prompt, that VBench looks at
SUFFIXES = (".mp4", ".gif")
CACHE = "VBENCH_CACHE_DIR"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `vbench`."""
    parser = commands.add_parser(
        "vbench", help="score a folder of videos by VBench's own package", allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="videos, as `sample` writes them")
    parser.add_argument(
        "--dimensions",
        nargs="+",
        choices=NEEDS,
        default=list(NEEDS),
        metavar="NAME",
        help=f"default: all whose weights are there, of {', '.join(NEEDS)}",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="standard",
        help="standard: VBench's prompts; custom: any, in fewer dimensions (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=os.environ.get(CACHE) or Path.home() / ".cache" / "vbench",
        metavar="FOLDER",
        help=f"VBench's ${CACHE} (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: vbench.json in DIR")
    parser.add_argument("--install", action="store_true", help="make VBench's environment: several GB")
    parser.add_argument(
        "--environment",
        type=Path,
        default=vbench_environment.default_folder(),
        metavar="FOLDER",
        help="where it is (default: %(default)s)",
    )
    parser.add_argument("--python", metavar="NAME", help="to make it with, 3.10 or 3.11 (default: one found)")


def run(options: argparse.Namespace) -> str:
    """Score a folder; the table as text.

    Raises:
        ValueError: no environment, no videos for this mode, or no dimension that gave a figure.
    """
    if distributed.processes() > 1:
        raise ValueError(f"vbench runs in one process, got {distributed.processes()}; leave torchrun out.")
    installed = vbench_environment.install(options.environment, options.python) if options.install else None
    if options.folder is None:
        if installed is None:
            raise ValueError("expected a folder of videos, got none; name one, or give --install.")
        return installed
    vbench_environment.interpreter(options.environment)
    out = options.out or options.folder / "vbench.json"
    check_file(out)
    videos = found(options.folder)
    if options.mode == "standard":
        asked = vbench_environment.entries(options.environment)
        videos = of_its_prompts(videos, {entry["prompt_en"] for entry in asked})
    else:
        asked = [{"prompt_en": prompt, "dimension": list(NEEDS)} for prompt in {v.prompt for v in videos}]
    bench = Bench(options, videos, asked)
    bench.score()
    write_json(out, bench.result())
    return "\n".join([*filter(None, [installed]), *bench.table(), shown(out)])


@dataclass(frozen=True)
class Video:
    """One of a prompt. sample: which, from 0."""

    path: Path
    prompt: str
    sample: int


def found(folder: Path) -> list[Video]:
    """The videos of a folder with their prompts: of its manifest, else of VBench's names, PROMPT-0.mp4.

    Raises:
        ValueError: there are none, some are gone, or VBench cannot read them.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of videos, got {shown(folder)}; check the name.")
    listed = manifest.read(folder)
    for row in listed:
        if "prompt" not in row or Path(row["file"]).name != row["file"]:
            raise ValueError(
                "VBench needs the prompt of every video, and all of them in one folder, which "
                f"{shown(folder / manifest.NAME, 80)} does not say of {shown(row['file'], 80)}; run `sample` "
                "again."
            )
    rows = [(row["file"], row["prompt"]) for row in listed]
    if not rows:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        rows = [(name, re.sub(r"-\d+$", "", Path(name).stem)) for name in names if not name.startswith(".")]
    if not rows:
        raise ValueError(f"expected videos in {shown(folder)}, got none of {', '.join(SUFFIXES)}; make some.")
    suffixes = {Path(name).suffix.lower() for name, _ in rows}
    if len(suffixes) > 1 or not suffixes <= set(SUFFIXES):
        kinds = ", ".join(sorted(suffix or "folders of frames" for suffix in suffixes))
        raise ValueError(
            f"VBench reads videos of one kind, {' or '.join(SUFFIXES)}, got {kinds}; make them anew."
        )
    if gone := [name for name, _ in rows if not (folder / name).is_file()]:
        raise ValueError(
            f"{len(gone):,} videos of {shown(folder / manifest.NAME, 80)} are gone, the first is "
            f"{shown(gone[0], 80)}; run `sample` again."
        )
    count, videos = Counter(), []
    for name, prompt in rows:
        videos.append(Video(folder.resolve() / name, prompt, count[prompt]))
        count[prompt] += 1
    return videos


def of_its_prompts(videos: list[Video], prompts: set[str]) -> list[Video]:
    """Those that VBench's list asks for.

    Raises:
        ValueError: none.
    """
    kept = [video for video in videos if video.prompt in prompts and video.sample < SAMPLES]
    if not kept:
        raise ValueError(
            f"none of {len(videos):,} videos has a prompt of VBench's list, the first has "
            f"{shown(videos[0].prompt, 80)!r}; make them with --prompts vbench, or give --mode custom."
        )
    return kept


class Bench:
    """One run over the dimensions. asked: entries of VBench's list, which dimensions each prompt is for.

    scores: VBench's own JSON, by dimension, with our files' names. without: why another one has none.
    """

    def __init__(self, options: argparse.Namespace, videos: list[Video], asked: list[Mapping]):
        self.options, self.videos, self.asked = options, videos, asked
        self.scores: dict[str, list] = {}
        self.without: dict[str, str] = {}

    def counts(self, dimension: str) -> tuple[int, int]:
        """How many videos a dimension has here, and how many VBench asks for."""
        prompts = [entry["prompt_en"] for entry in self.asked if dimension in entry["dimension"]]
        here = Counter(video.prompt for video in self.videos)
        number = sum(here[prompt] for prompt in prompts)
        return number, SAMPLES * len(prompts) if self.options.mode == "standard" else number

    def _reason(self, dimension: str) -> str | None:
        """Why a dimension cannot be run here."""
        if self.options.mode == "custom" and dimension in OWN_PROMPTS:
            return "is for VBench's own prompts"
        if missing := [
            name for name in NEEDS[dimension] if not (Path(self.options.weights) / name).is_file()
        ]:
            return f"needs {' and '.join(missing)}"
        if not self.counts(dimension)[0]:
            return "has no video of its prompts"
        return None

    def score(self) -> None:
        """Run all dimensions that can be.

        Raises:
            ValueError: none gave a figure.
        """
        for dimension in self.options.dimensions:
            if reason := self._reason(dimension):
                self.without[dimension] = reason
        ready = [dimension for dimension in self.options.dimensions if dimension not in self.without]
        with tempfile.TemporaryDirectory(prefix="vbench") as folder:
            names = self._linked(Path(folder) / "videos")
            for dimension in tqdm(ready, desc="vbench", unit=" dimensions", disable=not ready):
                self._run(dimension, Path(folder), names)
        if not self.scores:
            first = next(iter(self.without))
            raise ValueError(
                f"no dimension of VBench can be scored: {first} {self.without[first]}; weights are looked "
                f"for in {shown(self.options.weights, 80)}."
            )

    def _linked(self, folder: Path) -> dict[str, Video]:
        """Make links of VBench's names, or of numbers where it is told the prompts; which is which."""
        folder.mkdir()
        names = {}
        for number, video in enumerate(self.videos):
            suffix = video.path.suffix.lower()
            if self.options.mode == "standard":
                name = f"{video.prompt}-{video.sample}{suffix}"
            else:
                name = f"{number:06d}{suffix}"
            try:
                os.symlink(video.path, folder / name)
            except FileExistsError:  # two of its prompts are one to a file system that ignores case
                continue
            except OSError:  # Windows' users may make none
                shutil.copyfile(video.path, folder / name)
            names[name] = video
        return names

    def _run(self, dimension: str, folder: Path, names: Mapping[str, Video]) -> None:
        python = vbench_environment.interpreter(self.options.environment)
        custom = self.options.mode == "custom"
        asked = {
            "device": self.options.device,
            "prompts": str(vbench_environment.list_path(self.options.environment).resolve()),
            "out": str(folder / "out"),
            "videos": str(folder / "videos"),
            "dimension": dimension,
            "mode": MODES[self.options.mode],
            "by_name": {name: video.prompt for name, video in names.items()} if custom else [],
        }
        write_json(folder / "asked.json", asked)
        child = Path(__file__).with_name("vbench_child.py")
        done = subprocess.run(
            [str(python.absolute()), "-I", str(child), str(folder / "asked.json")],
            env=os.environ | OFFLINE | {CACHE: str(Path(self.options.weights).absolute())},
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        path = folder / "out" / f"{dimension}_eval_results.json"
        if done.returncode or not path.exists():
            self.without[dimension] = f"failed: {vbench_environment.last_words(done.stdout)}"
            return
        score = json.loads(path.read_text(encoding="utf-8"))[dimension]
        if not isinstance(score[0], float | int) or not math.isfinite(score[0]):
            self.without[dimension] = f"failed: it gave {shown(score[0], 40)}"
            return
        self.scores[dimension] = _renamed(score, names)

    def result(self) -> dict:
        """All of it, as JSON values."""
        return {
            "vbench": vbench_environment.VERSION,
            "mode": MODES[self.options.mode],
            "videos": len(self.videos),
            "prompts": len({video.prompt for video in self.videos}),
            "results": self.scores,
            "counts": {
                dimension: dict(zip(("videos", "asked_for"), self.counts(dimension), strict=True))
                for dimension in self.scores
            },
            "without": self.without,
        }

    def table(self) -> list[str]:
        """The lines that a person reads."""
        lines = []
        for dimension in self.options.dimensions:
            if dimension in self.scores:
                number, wanted = self.counts(dimension)
                count = f"{number:,} videos" if number == wanted else f"{number:,} of {wanted:,} videos"
                lines.append(f"{dimension:24}{self.scores[dimension][0]:8.4f}  {count}")
            else:
                lines.append(f"{dimension:24}{'-':>8}  {self.without[dimension]}")
        if any(reason.startswith("needs") for reason in self.without.values()):
            lines.append(f"weights are looked for in {shown(self.options.weights)}")
        return lines


def _renamed(value: object, names: Mapping[str, Video]) -> object:
    """VBench's JSON with our names in the places of the links' paths."""
    if isinstance(value, dict):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    if isinstance(value, str) and (video := names.get(Path(value).name)):
        return video.path.name
    return value


COMMANDS = {"vbench": run}
