"""`python -m tests.host screenshots [NAME ...]`: the workflows and their pictures anew, on the newest host.

It writes workflows/*.json from graphs/*.json and layout.json through the frontend, runs them, and takes their
thumbnails and the pictures of README. Pictures of all of them in both looks, to be looked at, are left in
screenshots/. Nothing else may write these files. `--export` stops after the workflows.
"""

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)  # host and pack become importable

import av  # noqa: E402
from host_tests.browser.driver import LOOKS, Browser  # noqa: E402
from host_tests.files import prepare  # noqa: E402
from host_tests.harness import Graph, Server  # noqa: E402
from host_tests.workflows import LAYOUT, NAMES, SHOTS, WORKFLOWS, on_stand_ins, quick_values, write  # noqa: E402
from PIL import Image  # noqa: E402

IN_README = {  # (workflow, look)
    ("text_and_image_to_video", "nodes2"),
    ("modality_sweep", "nodes2"),
    ("modality_sweep", "classic"),
}
CANVAS = (64, 108, 1564, 928)  # of a picture of the window, without what lies around the graph
SIDE = 192  # pixels of a square frame in a thumbnail


def main(names: list[str], export_alone: bool) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Server(conftest.host_here, Path(folder)) as server:
        prepare(server)
        browser = Browser(server, folder)
        export(browser, names)
        say(started, f"wrote {len(names)} workflows")
        for look in () if export_alone else LOOKS:
            take_pictures(browser, server, look, names)
            say(started, f"took the pictures of {look}")


def export(browser: Browser, names: list[str]) -> None:
    layout = json.loads(LAYOUT.read_text())
    items = [{"name": name, "graph": dict(Graph.named(name)), "layout": layout[name]} for name in names]
    for name, workflow in zip(
        names, browser("nodes2", [{"do": "export", "item": item} for item in items]), strict=True
    ):
        write(name, workflow)


def take_pictures(browser: Browser, server: Server, look: str, names: list[str]) -> None:
    SHOTS.mkdir(exist_ok=True)
    shots = {name: SHOTS / f"{name}-{look}.png" for name in names}
    tasks = [
        {
            "do": "workflow",
            "file": str(WORKFLOWS / f"{name}.json"),
            "widgets": quick_values(name) if on_stand_ins(name) else {},
            "opened": str(shots[name].with_stem(f"{shots[name].stem}-opened")),
            "ended": str(shots[name]),
            "fill": True,
        }
        for name in names
    ]
    for name, task, seen in zip(names, tasks, browser(look, tasks), strict=True):
        end = seen["end"] or {}
        if end.get("kind") != "execution_success":
            sys.exit(f"{name} did not run: {seen['red'] or end}")
        if look == "classic":
            made = server.get(f"/history/{end['prompt_id']}")[end["prompt_id"]]["outputs"].values()
            files = [server.file(i) for o in made for i in o.get("images", ()) if i["type"] == "output"]
            shown = frames_of(files[0]) if not on_stand_ins(name) else canvas(task["opened"])
            save(shown, WORKFLOWS / f"{name}.jpg", 60_000)
        if (name, look) in IN_README:
            save(canvas(task["ended"]), WORKFLOWS / "canvas" / f"{name}-{look}.jpg", 100_000)


def canvas(shot) -> Image.Image:
    with Image.open(shot) as page:
        return page.convert("RGB").crop(CANVAS)


def frames_of(file: Path) -> Image.Image:
    """Four frames of a video, tall ones in a row, others two by two; or a picture."""
    if file.suffix != ".mp4":
        return Image.open(file).convert("RGB")
    with av.open(str(file)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    columns = 4 if frames[0].height > frames[0].width else 2
    width = 2 * SIDE // columns
    height = width * frames[0].height // frames[0].width
    page = Image.new("RGB", (2 * SIDE, 4 // columns * height))
    for i in range(4):
        frame = frames[i * (len(frames) - 1) // 3].resize((width, height), Image.Resampling.BICUBIC)
        page.paste(frame, (width * (i % columns), height * (i // columns)))
    return page


def save(picture: Image.Image, target: Path, most_bytes: int) -> None:
    """A JPEG, small enough: for the template browser, and for a repository that keeps each version."""
    picture = picture.copy()
    picture.thumbnail((1400, 1400) if target.parent.name == "canvas" else (512, 512))
    target.parent.mkdir(exist_ok=True)
    for quality in (90, 80, 70, 50):
        picture.save(target, quality=quality, optimize=True)
        if target.stat().st_size <= most_bytes:
            return


def say(started: float, words: str) -> None:
    print(f"{time.monotonic() - started:4.0f} s: {words}", flush=True)


if __name__ == "__main__":
    chosen = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if unknown := set(chosen) - set(NAMES):
        sys.exit(f"expected names among {', '.join(NAMES)}, got {', '.join(sorted(unknown))}.")
    try:
        main(chosen or NAMES, "--export" in sys.argv)
    finally:
        conftest.pytest_sessionfinish()
