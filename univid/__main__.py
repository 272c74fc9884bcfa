"""`python -m univid`: the commands. Arguments are in cli.py; torch is imported only when a command runs."""

import argparse
import dataclasses
import sys
import time
import traceback
from pathlib import Path

from .cli import build_parser
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
    """Write one video, and its contact sheet if asked."""
    from . import memory
    from .pipeline import Clip, Source
    from .pipeline import generate as run
    from .sheet import contact_sheet, frame_bytes, save_sheet
    from .video import check_output, check_video, read_image, write_video

    _refuse_idle(args)
    check_output(args.out, args.fps, _inputs(args))
    if args.sheet:
        _check_png(args.sheet, _inputs(args))
    image, last_image = (None if path is None else read_image(path) for path in (args.image, args.last_image))
    if args.video is not None:
        check_video(args.video)
    model = _load(args)
    clip, clip_fps = (None, None) if args.video is None else _read_source(args, model.profile)
    fps = next(rate for rate in (args.fps, clip_fps, model.profile.fps) if rate is not None)
    frames, *pixels = _size(args, model.profile) if clip is None else clip.shape[2:]
    check_output(args.out, fps, _inputs(args), size=tuple(pixels))
    if args.sheet:
        drawn = frames * frame_bytes(*pixels)
        memory.check(drawn, f"the sheet {shown(args.sheet)} needs", "leave it out, or ask for fewer frames")
    denoise = args.denoise
    if denoise is None:
        denoise = 1.0 if clip is None or model.profile.start.from_video else DEFAULT_DENOISE
    started = time.perf_counter()
    with ProgressBars() as progress:
        video = run(
            model,
            args.prompt,
            image,
            text_weight=args.text_weight,
            image_weight=1.0 if args.image_weight is None else args.image_weight,
            clip=Clip(frames, *pixels, args.fps_number),
            source=Source(clip, denoise, last_image),
            callback=progress,
            **_common(args, model.profile),
        )
    write_video(video, args.out, fps)
    _, _, t, h, w = video.shape
    print(
        f"{shown(args.out)}: {t} frames of {w} x {h}, {fps:g} fps, in {time.perf_counter() - started:.1f} s"
    )
    if args.sheet:
        save_sheet(contact_sheet(video, title=_title(args.prompt, args.image), reference=image), args.sheet)
        print(f"{shown(args.sheet)}: all frames")


def sweep(args: argparse.Namespace) -> None:
    """Write the grid of text weights against picture weights as one picture."""
    from . import memory
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
    model = _load(args)
    common = _common(args, model.profile)
    frames, *pixels = _size(args, model.profile)
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
                    **common,
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
    save_sheet(page, args.out)
    print(f"{shown(args.out)}: text weight a row, picture weight a column")


def demo(args: argparse.Namespace) -> None:
    """Write one clip of each kind, and its contact sheet."""
    from .files import output
    from .pipeline import generate as run
    from .sheet import contact_sheet, save_sheet
    from .video import read_image, write_video

    output.check_folder(args.out, add=True)
    model = _load(args)
    picture, fps = read_image(SAMPLE), model.profile.fps
    with output.new_folder(args.out, add=True) as folder:
        for name, (prompt, with_picture) in DEMOS.items():
            image = picture if with_picture else None
            with ProgressBars(f"{name}: ") as progress:
                video = run(model, prompt, image, callback=progress)
            write_video(video, folder / f"{name}.mp4", fps)
            page = contact_sheet(video, title=_demo_title(name), reference=image)
            save_sheet(page, folder / f"{name}.png")
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


def export(args: argparse.Namespace) -> None:
    """Write a relative's U-Net as a diffusers folder."""
    from .checkpoints import export as run

    run(args.checkpoint, args.out)
    print(f"{shown(args.out)}: unet/ for diffusers' UNet3DConditionModel")


COMMANDS = {
    "generate": generate,
    "sweep": sweep,
    "demo": demo,
    "inspect": inspect,
    "import": import_source,
    "inflate": import_source,  # what `import` was called while Stable Diffusion was all it read
    "export": export,
}


class ProgressBars:
    """A `generate` callback that shows one bar a stage on stderr."""

    def __init__(self, prefix: str = ""):
        self.prefix, self.stage, self.bar = prefix, None, None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.close()
            units = {"sample": "step", "decode": "frame"}
            self.stage = stage
            self.bar = tqdm(
                total=total, desc=f"{self.prefix}{stage}", unit=units.get(stage, ""), file=sys.stderr
            )
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _load(args: argparse.Namespace):
    import torch

    from .checkpoints import apply_lora, load

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    best = accelerator or torch.device("cpu")
    try:
        device = best if args.device == "auto" else torch.device(args.device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto', 'cpu' or '{best}', got {args.device!r}.") from error
    if device.type not in ("cpu", best.type):
        raise ValueError(f"this machine has no device {args.device!r}; give 'auto' or '{best}'.")
    best_dtype = "fp32" if device.type == "cpu" else "bf16"
    dtype = dtype_of(best_dtype if args.dtype == "auto" else args.dtype)
    model = load(args.checkpoint, device=device, dtype=dtype, compile=args.compile)
    for given in args.lora:
        apply_lora(model, *split_strength(given))
    return model


def split_strength(given: str) -> tuple[str, float]:
    """The file and the strength of FILE[:S]; a colon may also belong to the file's name."""
    path, colon, strength = given.rpartition(":")
    if not colon or Path(given).exists():
        return given, 1.0
    try:
        return path, float(strength)
    except ValueError:
        return given, 1.0


def _common(args: argparse.Namespace, profile) -> dict:
    """What generate and sweep hand on alike."""
    from .pipeline import Sampling, profile_guider

    asked = {
        "kind": ("--guidance", args.guidance),
        "scale": ("--guidance-scale", args.guidance_scale),
        "text": ("--text-guidance", args.text_guidance),
        "image": ("--image-guidance", args.image_guidance),
        "rescale": ("--guidance-rescale", args.guidance_rescale),
    }
    given = {name: value for name, (_, value) in asked.items() if value is not None}
    guidance = dataclasses.replace(profile.guidance, **given)
    for name in ("text", "image") if guidance.kind == "joint" else ("scale",):
        if name in given:
            raise ValueError(f"{asked[name][0]} does nothing with {guidance.kind} guidance; see --guidance.")
    if args.eta is not None and (args.sampler or profile.sampler) != "ddim":
        raise ValueError(
            f"--eta does nothing with {args.sampler or profile.sampler}; give --sampler ddim too."
        )
    references = dict(args.references or ())
    if len(references) < len(args.references or ()):
        raise ValueError("--references names a level twice; give each of them once.")
    return {
        "negative": args.negative,
        "guidance": profile_guider(dataclasses.replace(profile, guidance=guidance)),
        "sampling": Sampling(args.steps, args.sampler, args.schedule, args.eta, references),
        "seed": args.seed,
    }


def _refuse_idle(args: argparse.Namespace) -> None:
    """Nothing that was asked for is silently without effect."""
    if args.image is None and not args.prompt.strip():
        raise ValueError("expected --prompt, --image or both, got neither; say what the video shall show.")
    if args.command == "generate":
        if args.image_weight is not None and args.image is None:
            raise ValueError("--image-weight needs a picture; give --image too.")
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
    frames, *size = _size(args, profile)
    clip, fps = read_video(args.video, frames=frames, size=tuple(size))
    if args.frames and clip.shape[2] < args.frames:
        raise ValueError(
            f"{shown(args.video)} has {clip.shape[2]} frames, fewer than --frames {args.frames}; ask for "
            "fewer."
        )
    return clip, fps


def _size(args: argparse.Namespace, profile) -> tuple[int, int, int]:
    """Frames, height and width of a clip: as asked, else the profile's."""
    asked = {name: getattr(args, name) for name in ("frames", "height", "width")}
    return tuple(getattr(profile, name) if value is None else value for name, value in asked.items())


def _inputs(args: argparse.Namespace) -> list[str | None]:
    """The files that generate or sweep reads, which it must not write."""
    given = [getattr(args, name, None) for name in ("image", "last_image", "video", "checkpoint")]
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
