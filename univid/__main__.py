"""`python -m univid`: the commands. Arguments are in cli.py; torch is imported only when a command runs."""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from .cli import build_parser
from .cli_shared import (
    ProgressBars,
    clip_size,
    common,
    load_model,
    read_masks,
    read_pictures,
    split_strength,
)
from .dtypes import dtype_of
from .messages import sentence, show_safely, shown
from .signals import stoppable

PROG = "univid"
SAMPLE = Path(__file__).parent / "assets" / "sample.png"
DEFAULT_DENOISE = 0.6

# name: (prompt, whether the sample picture is used). The sample picture shows a blue square on white.
DEMOS = {
    "text-to-video": ("a red circle moves left on a black background", False),
    "image-to-video": ("", True),
    "text-and-image-to-video": ("a blue square moves up on a white background", True),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 2 an error (one line on stderr), 130 and more stopped."""
    argv = sys.argv[1:] if argv is None else argv
    show_safely(f"{PROG}: %(levelname)s: %(message)s")
    try:
        with stoppable():
            args = build_parser().parse_args(argv)
            COMMANDS[args.command](args)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads this has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(f"{PROG}: interrupted; no unfinished file was left.", file=sys.stderr)
        return getattr(stop, "status", 130)
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(sentence(f"{PROG}: error: {_reason(error)}"), file=sys.stderr)
        return 2
    return 0


def generate(args: argparse.Namespace) -> None:
    """Write one video, and its contact sheet if asked; of a sheet that is repeated, the sheet alone."""
    from . import memory
    from .cli_made import clip_settings, given_files, picture_settings, receipt
    from .pipeline import Clip, Source
    from .pipeline import generate as run
    from .sheet import contact_sheet, frame_bytes, save_sheet
    from .video import check_output, check_video, read_image, write_video

    _refuse_idle(args)
    if args.out:
        check_output(args.out, args.fps, _inputs(args))
    if args.sheet:
        _check_png(args.sheet, _inputs(args))
    pictures = read_pictures(args)
    image = pictures[0].image if isinstance(pictures, list) else pictures
    last_image = None if args.last_image is None else read_image(args.last_image)
    if args.video is not None:
        check_video(args.video)
    read_masks(args)  # looked at before a model is loaded for nothing
    model = load_model(args)
    files = given_files(args, [model], {"checkpoint": args.checkpoint})
    clip, clip_fps = (None, None) if args.video is None else _read_source(args, model.profile)
    fps = next(rate for rate in (args.fps, clip_fps, model.profile.fps) if rate is not None)
    frames, *pixels = clip_size(args, model.profile) if clip is None else clip.shape[2:]
    if args.out:
        check_output(args.out, fps, _inputs(args), size=tuple(pixels))
    masks, pictures = read_masks(args, frames), read_pictures(args, frames)
    if args.sheet:
        drawn = frames * frame_bytes(*pixels)
        memory.check(drawn, f"the sheet {shown(args.sheet)} needs", "leave it out, or ask for fewer frames")
    denoise = args.denoise
    if denoise is None:
        denoise = 1.0 if clip is None or model.profile.start.from_video else DEFAULT_DENOISE
    started = time.perf_counter()
    told, image_weight = common(args, model.profile), 1.0 if args.image_weight is None else args.image_weight
    with ProgressBars() as progress:
        video = run(
            model,
            args.prompt,
            pictures,
            text_weight=args.text_weight,
            image_weight=image_weight,
            clip=Clip(frames, *pixels, args.fps_number),
            source=Source(clip, denoise, last_image),
            masks=masks,
            callback=progress,
            **told,
        )
    settings = clip_settings(args, model, told, video.shape[2:]) | {
        "fps": fps,
        "text_weight": args.text_weight,
        "image_weight": None if image is None else image_weight,
        "denoise": None if clip is None else denoise,
        **picture_settings(args),
    }
    note = receipt(args, "generate", settings, files).text()
    _, _, t, h, w = video.shape
    if args.out:
        write_video(video, args.out, fps, note)
        taken = time.perf_counter() - started
        print(f"{shown(args.out)}: {t} frames of {w} x {h}, {fps:g} fps, in {taken:.1f} s")
    if args.sheet:
        page = contact_sheet(video, title=_title(args.prompt, args.image), reference=image)
        save_sheet(page, args.sheet, note)
        print(f"{shown(args.sheet)}: all frames")


def sweep(args: argparse.Namespace) -> None:
    """Write the grid of text weights against picture weights as one picture."""
    from . import memory
    from .cli_made import clip_settings, given_files, receipt
    from .pipeline import Clip
    from .pipeline import generate as run
    from .sheet import cell_bytes, save_sheet, shown_frames, sweep_sheet
    from .video import read_image

    _refuse_idle(args)
    _check_png(args.out, _inputs(args))
    cells = len(args.text_weights) * len(args.image_weights)

    def check_memory(height: int, width: int, frames: int) -> None:
        needed = cells * cell_bytes(height, width, frames)
        memory.check(needed, f"a sweep of {cells:,} clips needs", "give fewer weights")

    check_memory(8, 8, 1)  # before a model is loaded for nothing
    image = read_image(args.image)
    model = load_model(args)
    files = given_files(args, [model], {"checkpoint": args.checkpoint})
    told = common(args, model.profile)
    frames, *pixels = clip_size(args, model.profile)
    check_memory(*pixels, frames)
    grid = []
    for row, text_weight in enumerate(args.text_weights):
        clips = []
        for column, image_weight in enumerate(args.image_weights):
            number = row * len(args.image_weights) + column + 1
            with ProgressBars(f"{number}/{cells} ") as progress:
                clip = run(
                    model,
                    args.prompt,
                    image,
                    text_weight=text_weight,
                    image_weight=image_weight,
                    clip=Clip(frames, *pixels, args.fps_number),
                    callback=progress,
                    **told,
                )
            clips.append(shown_frames(clip))
        grid.append(clips)
    page = sweep_sheet(
        grid,
        title=args.prompt,
        row_labels=[f"text {weight:g}" for weight in args.text_weights],
        column_labels=[f"picture {weight:g}" for weight in args.image_weights],
        reference=image,
    )
    settings = clip_settings(args, model, told, (frames, *pixels)) | {
        "text_weights": args.text_weights,
        "image_weights": args.image_weights,
    }
    save_sheet(page, args.out, receipt(args, "sweep", settings, files).text())
    print(f"{shown(args.out)}: text weight a row, picture weight a column")


def demo(args: argparse.Namespace) -> None:
    """Write one clip of each kind, and its contact sheet; their receipts are those of `generate`."""
    from .cli_made import clip_settings, given_files, receipt
    from .files import output
    from .pipeline import generate as run
    from .sheet import contact_sheet, save_sheet
    from .video import read_image, write_video

    output.check_folder(args.out, add=True)
    model = load_model(args)
    picture, fps = read_image(SAMPLE), model.profile.fps
    with output.new_folder(args.out, add=True) as folder:
        for name, (prompt, with_picture) in DEMOS.items():
            image = picture if with_picture else None
            asked = build_parser().parse_args(["generate", "--prompt", prompt, "--out", f"{name}.mp4"])
            shared = {"checkpoint": args.checkpoint, "lora": args.lora, "compile": args.compile}
            shared |= {"device": args.device, "dtype": args.dtype, "image": SAMPLE if with_picture else None}
            asked = argparse.Namespace(**vars(asked) | shared)
            told = common(asked, model.profile)
            with ProgressBars(f"{name}: ") as progress:
                video = run(model, prompt, image, callback=progress, **told)
            settings = clip_settings(asked, model, told, video.shape[2:]) | {"fps": fps, "text_weight": 1.0}
            if with_picture:
                settings["image_weight"] = 1.0
            files = given_files(asked, [model], {"checkpoint": args.checkpoint})
            note = receipt(asked, "generate", settings, files).text()
            write_video(video, folder / f"{name}.mp4", fps, note)
            page = contact_sheet(video, title=_demo_title(name), reference=image)
            save_sheet(page, folder / f"{name}.png", note)
    for name in DEMOS:
        print(f"{shown(Path(args.out) / name)}.mp4 and .png: {_demo_title(name)}")


def _demo_title(name: str) -> str:
    prompt, with_picture = DEMOS[name]
    return _title(prompt, SAMPLE if with_picture else None)


def inspect(args: argparse.Namespace) -> None:
    """Print what a checkpoint holds."""
    from .checkpoints import describe

    print(describe(args.checkpoint))


def import_source(args: argparse.Namespace) -> None:
    """Make a UniVid checkpoint out of a foreign one, and say what became of its tensors."""
    from .checkpoints.imports import COUNTED, plan, write
    from .checkpoints.stream import check

    check(args.out, (args.source, args.vision))
    planned = plan(
        args.source,
        name=args.name,
        prediction=args.prediction,
        extend=args.extend,
        vision=args.vision,
        dtype=None if args.dtype == "auto" else dtype_of(args.dtype),
        seed=args.seed,
    )
    report = planned.report
    print(f"{shown(args.source)}: {report.title}" + (f" ({report.note})" if report.note else ""))
    for word in COUNTED:
        tensors, parameters = report.counts[word]
        print(f"  {word:8}{tensors:>7,} tensors {parameters:>15,} parameters")
    if report.absent:
        print(f"  absent: {', '.join(part.replace('_', ' ') for part in report.absent)}")
    print(f"  licence of the source: {report.licence}")
    write(planned, args.source, args.out)
    print(f"{shown(args.out)}: written; see `python -m univid inspect {shown(args.out)}`")


def cascade(args: argparse.Namespace) -> None:
    """Make a clip of another one, or go through several such stages."""
    from .cli_cascade import run

    for line in run(args):
        print(line, flush=True)


def export(args: argparse.Namespace) -> None:
    """Write a relative's U-Net as a diffusers folder."""
    from .checkpoints import export as run

    run(args.checkpoint, args.out)
    print(f"{shown(args.out)}: unet/ for diffusers' UNet3DConditionModel")


def show_receipt(args: argparse.Namespace) -> None:
    """Print what made a file."""
    from .cli_receipt import read_out

    for line in read_out(args):
        print(line)


def repeat(args: argparse.Namespace) -> None:
    """Make a file again, by its receipt."""
    from .cli_receipt import asked_again

    again, notices = asked_again(args)
    for line in notices:
        print(line, flush=True)
    COMMANDS[again.command](again)


def compare(args: argparse.Namespace) -> None:
    """Say why two files differ."""
    from .cli_receipt import compared

    for line in compared(args):
        print(line, flush=True)


COMMANDS = {
    "generate": generate,
    **dict.fromkeys(("interpolate", "extend", "upscale", "chain"), cascade),
    "sweep": sweep,
    "demo": demo,
    "inspect": inspect,
    "import": import_source,
    "inflate": import_source,  # what `import` was called while Stable Diffusion was all it read
    "export": export,
    "receipt": show_receipt,
    "repeat": repeat,
    "compare": compare,
}


def _refuse_idle(args: argparse.Namespace) -> None:
    """Nothing that was asked for is silently without effect."""
    if args.image is None and not args.prompt.strip():
        raise ValueError("expected --prompt, --image or both, got neither; say what the video shall show.")
    if args.command == "generate":
        if args.image_weight is not None and args.image is None:
            raise ValueError("--image-weight needs a picture; give --image too.")
        if args.image_mask is not None and args.image is None:
            raise ValueError("--image-mask needs a picture; give --image too.")
        if args.last_image is not None and args.image is None:
            raise ValueError("--last-image needs a first picture; give --image too.")
        if args.denoise is not None and args.video is None:
            raise ValueError("--denoise needs a video to start from; give --video too.")


def _read_source(args: argparse.Namespace, profile):
    """The frames of --video at the size asked for, and their frames per second."""
    from .video import read_video

    for name, value in {"frames": args.frames, "height": args.height, "width": args.width}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    frames, *size = clip_size(args, profile)
    clip, fps = read_video(args.video, frames=frames, size=tuple(size))
    if args.frames and clip.shape[2] < args.frames:
        raise ValueError(
            f"{shown(args.video)} has {clip.shape[2]} frames, fewer than --frames {args.frames}; ask for "
            "fewer."
        )
    return clip, fps


def _inputs(args: argparse.Namespace) -> list[str | None]:
    """The files that generate or sweep reads, which it must not write."""
    names = ("image", "last_image", "video", "text_mask", "image_mask", "checkpoint")
    given = [getattr(args, name, None) for name in names]
    given += [path for one in getattr(args, "pictures", None) or () for path in (one.path, one.mask)]
    return given + [split_strength(lora)[0] for lora in args.lora]


def _check_png(path: str, inputs: list[str | None]) -> None:
    from .files.output import check_file

    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"expected a picture name ending in .png, got {path}.")
    check_file(path, inputs)


def _title(prompt: str, image: str | Path | None) -> str:
    return prompt or f"picture {Path(image).name}, no text"


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else text
    if isinstance(error, (ValueError, FloatingPointError)):
        return text
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "not enough memory; ask for fewer frames, or a smaller height and width."
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        why = " ".join(text.split("\n\n")[0].split())
        return f"torch.compile cannot translate the network here ({why}); leave --compile out."
    return f"{type(error).__name__}: {text} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
