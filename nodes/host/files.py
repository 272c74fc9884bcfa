"""The checkpoints that Load UniVid offers, and the files that the example workflows open."""

import logging
import shutil
from pathlib import Path

import folder_paths

from ...univid.checkpoints import native

FOLDERS = ("univid", "checkpoints", "diffusion_models")
# What is inside shows by the first bytes; PyTorch's own files are read as plain weights, never run.
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
# In the host's input folder: univid_sample.png and so on.
SAMPLES = ("sample.png", "sample_last.png", "sample_second.png", "sample.mp4")

logger = logging.getLogger(__name__)

folder_paths.add_model_folder_path("univid", str(Path(folder_paths.models_dir, "univid")))
# The example of a motion that was taught, so that its workflow opens and runs without a download.
folder_paths.add_model_folder_path("loras", str(native.built_in_path().with_name("loras")))


def checkpoints() -> list[str]:
    """The built-in checkpoints first, then what the folders hold, each name once."""
    names = [name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)]
    return [*native.ASSETS, *dict.fromkeys(name for name in names if name.lower().endswith(SUFFIXES))]


def checkpoint_path(name: str) -> Path:
    """The file of a name that `checkpoints` gave, here or under Windows; the first folder that has it wins.

    Raises:
        ValueError: no such file.
    """
    if name in native.ASSETS:
        return native.built_in_path(name)
    places = [(folder, known) for known in (name, name.replace("\\", "/")) for folder in FOLDERS]
    for folder, known in places if name.lower().endswith(SUFFIXES) else ():
        if path := folder_paths.get_full_path(folder, known):
            return Path(path)
    raise ValueError(
        f"found no checkpoint '{name}' in the model folders {', '.join(FOLDERS)}; put the file into "
        f"{folder_paths.get_folder_paths(FOLDERS[0])[0]}, or choose {native.BUILT_IN!r}."
    )


def fingerprint(name: str) -> tuple:
    """What changes when the file behind a name does; an empty tuple while there is none."""
    try:
        path = checkpoint_path(name)
        found = path.stat()
    except (ValueError, OSError):
        return ()
    return str(path), found.st_size, found.st_mtime_ns


def provide_samples() -> None:
    """Put the pictures and the video of the example workflows into the host's input folder, if not there."""
    folder = Path(folder_paths.get_input_directory())
    for name in SAMPLES:
        target = folder / f"univid_{name}"
        try:
            if not target.exists():
                shutil.copyfile(native.built_in_path().with_name(name), target)
        except OSError as error:
            logger.warning("could not write %s for the example workflows (%s)", target, error.strerror)
