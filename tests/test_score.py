"""`python -m training score`: figures by hand, protocols, what is kept, what is missing, bad input."""

import json

import numpy as np
import pytest
import torch
from metric_weights import FILES, batch, blobs, replace, unchecked, write_clips, write_networks
from scipy.linalg import sqrtm, svdvals

from training import distributed
from training.__main__ import main
from training.metrics import frames
from training.metrics.fid import resize
from training.metrics.protocol import PROTOCOLS, Protocol
from training.metrics.videos import Video, find_videos

HASH = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("networks") / "weights")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Real clips, and generated ones with noise on them: as arrays, videos and folders of frames."""
    root = tmp_path_factory.mktemp("clips")
    write_clips(root / "real", blobs(24, seed=1))
    write_clips(root / "made", list(blobs(12, seed=2, noise=20)))
    write_clips(root / "made" / "as videos", blobs(2, seed=3), ".mp4")
    write_clips(root / "made" / "as frames", blobs(2, seed=4), "")
    return root


@pytest.fixture
def score(tmp_path, monkeypatch, capsys, networks):
    """Call the command; gives its JSON and its text."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unchecked(monkeypatch, "fvd", "is", "fid", "fid-vid")

    def call(folder, *words, metrics="fvd", weights=networks, **options):
        out = tmp_path / "out.json"
        options = {"out": out, "metrics": metrics, "resamples": 4, "cache": tmp_path / "features"} | options
        named = [word for name, value in options.items() for word in (f"--{name}", value)]
        named += ["--weights", weights] if weights else []
        capsys.readouterr()
        main(list(map(str, ["score", folder, *named, *words])))
        return json.loads(out.read_text()), capsys.readouterr().out

    return call


def frechet(a, b):
    """By singular values of what the samples have in common, and of few features by SciPy's root."""
    shift, (a, b) = a.mean(0) - b.mean(0), ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    common = svdvals(a @ b.T).sum()
    if a.shape[1] < 500:
        one, other = a.T @ a, b.T @ b
        assert common == pytest.approx(np.trace(sqrtm(one @ other).real), rel=1e-4)
    return shift @ shift + (a**2).sum() + (b**2).sum() - 2 * common


def by_video(rows, videos):
    """The rows of some of 24 videos."""
    return rows.reshape(24, -1, rows.shape[1])[videos].reshape(-1, rows.shape[1])


def taken(folder, kind="clip", protocol=PROTOCOLS["all"]):
    """The frames that count, of each video, in the order of their names."""
    from univid.files.hashes import sha256

    for video in find_videos(folder):
        frames, fps = video.read()
        yield frames[protocol.choose(kind, len(frames), fps, sha256(video.path))]


# Figures


def test_figures_are_those_by_hand(score, folders, networks):
    result, text = score(folders / "made", "--real", folders / "real", metrics="fvd,is,fid,fid-vid", splits=1)
    nets = {name: torch.jit.load(networks / file) for name, file in FILES.items()}
    rows = {}
    for side in ("made", "real"):
        clips = [batch(frames) for frames in taken(folders / side)]
        settings = dict(rescale=True, resize=True, return_features=True)
        rows["fvd", side] = np.concatenate([nets["fvd"](clip, **settings).double() for clip in clips])
        rows["is", side] = np.concatenate([nets["is"](clip).double() for clip in clips])
        for name, kind in (("fid", "frame"), ("fid-vid", "clip")):
            frames = (resize(frames).float() for frames in taken(folders / side, kind))
            rows[name, side] = np.concatenate([nets["fid"](f).flatten(1).double() for f in frames])
    assert rows["fid", "made"].shape == (16, 2048) and rows["fid-vid", "made"].shape == (256, 2048)
    figures = result["metrics"]
    for name in ("fvd", "fid", "fid-vid"):
        expected = frechet(rows[name, "made"], rows[name, "real"])
        assert figures[name]["value"] == pytest.approx(expected, rel=1e-5), name
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]
        assert (figures[name]["n"], figures[name]["n_real"], figures[name]["floor"]["n"]) == (16, 24, 12)
        order = np.random.default_rng(0).permutation(24)  # two halves of the real videos
        halves = (by_video(rows[name, "real"], half) for half in (order[:12], order[12:]))
        assert figures[name]["floor"]["value"] == pytest.approx(frechet(*halves), rel=1e-5), name
    p = rows["is", "made"]
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert figures["is"]["value"] == pytest.approx(expected, rel=1e-6)
    assert result["videos"]["used"] == 16 and result["videos"]["sizes"] == {"64 x 48": 16}
    assert result["videos"]["rates"] == {"unknown": 14, "8": 2}
    assert "| made | all, changed: splits |" in text and "FVD (lower is better)" in text
    assert "FVD: 16 videos against 24 real ones, 16 frames; I3D Kinetics-400; i3d_torchscript.pt" in text
    assert result["protocol"]["frames"] == 16 and not result["missing"]


def test_more_noise_is_further_away(score, folders, tmp_path):
    values = []
    for noise in (0, 10, 20, 40, 80):
        folder = write_clips(tmp_path / str(noise), blobs(16, seed=9, noise=noise))
        result, _ = score(folder, "--real", folders / "real", resamples=0)
        values.append(result["metrics"]["fvd"]["value"])
        assert result["metrics"]["fvd"]["low"] is None
    assert values == sorted(values) and values[0] < values[-1] / 2


def test_a_floor_is_of_other_real_videos_where_there_are_enough(score, folders):
    result, _ = score(folders / "made", "--real", folders / "real", videos=8)
    assert result["metrics"]["fvd"]["floor"]["n"] == 8 == result["metrics"]["fvd"]["n"]
    assert result["real"]["used"] == 16
    assert result["protocol"]["name"] == "all, changed: videos, inception_videos"


# What is kept


def test_features_are_kept_by_content(score, folders, tmp_path, monkeypatch):
    folder = write_clips(tmp_path / "clips", blobs(6, seed=5))
    first, _ = score(folder, "--real", folders / "real")
    read, own = [], Video.read
    monkeypatch.setattr(Video, "read", lambda video: read.append(video.name) or own(video))
    (folder / "clip 000.npy").rename(folder / "clip 000b.npy")
    again, _ = score(folder, "--real", folders / "real", "--size", 48, 64)
    assert len(read) == 30, "frames of another size are other frames"
    read.clear()
    again, _ = score(folder, "--real", folders / "real")
    # the first of each side are looked at for their proportions
    assert len(read) == 2 and again == first
    np.save(folder / "clip 003.npy", next(blobs(1, seed=77)))
    for place in (tmp_path / "features").rglob("*.npz"):
        place.write_bytes(place.read_bytes()[:50]) if place.name < "1" else None
    damaged = sum(place.stat().st_size == 50 for place in (tmp_path / "features").rglob("*.npz"))
    read.clear()
    other, _ = score(folder, "--real", folders / "real")
    assert 1 <= len(read) - 2 <= damaged + 1 and "clip 003" in read
    assert other["metrics"]["fvd"]["value"] != first["metrics"]["fvd"]["value"]
    assert other["videos"]["content"] != first["videos"]["content"]


def test_statistics_stand_for_their_videos(score, folders, tmp_path):
    kept = tmp_path / "real.safetensors"
    words = ("--real", folders / "real", "--save-real", kept)
    first, _ = score(folders / "made", *words, metrics="fvd,fid", resamples=0)
    again, text = score(folders / "made", "--real", kept, metrics="fvd,fid", resamples=0)
    assert again["metrics"] == first["metrics"]
    assert again["real"]["folder"].endswith("real") and again["real"]["statistics"] == str(kept)
    assert "between two samples of 12 real videos" in text
    with pytest.raises(ValueError, match="other real features: its taken is"):
        score(folders / "made", "--real", kept, frames=8)
    with pytest.raises(ValueError, match="its videos is 24, asked is 8"):
        score(folders / "made", "--real", kept, videos=8)
    with pytest.raises(ValueError, match="fid-vid needs real videos"):
        score(folders / "made", "--real", kept, metrics="fid-vid")
    with pytest.raises(ValueError, match="--save-real keeps the statistics of real videos"):
        score(folders / "made", "--real", kept, "--save-real", tmp_path / "other")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(ValueError):
        score(folders / "made", "--real", kept)
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no real statistics"):
        score(folders / "made", "--real", tmp_path / "other.pt")


# What is missing


def test_a_metric_without_weights_says_which_and_the_others_run(score, folders, tmp_path, networks):
    weights = tmp_path / "some"
    weights.mkdir()
    (weights / FILES["is"]).write_bytes((networks / FILES["is"]).read_bytes())
    words = ("--real", folders / "real", "--splits", 2)
    result, text = score(folders / "made", *words, metrics="fvd,is,fid,clip-fid", weights=weights)
    assert list(result["metrics"]) == ["is"]
    missing = result["missing"]["clip-fid"]
    assert "has no ViT-B-32.pt, or ViT-B-32.safetensors; get ViT-B-32.pt (sha256 40d365715913" in missing
    assert "https://openaipublic" in missing and "not computed: fvd" in text
    assert result["metrics"]["is"]["weights"]["sha256"] and "c3d_ucf101.pt" in text
    with pytest.raises(ValueError, match=r"none of the metrics can be computed; fvd: no --weights FOLDER"):
        score(folders / "made", *words, weights=None)


def test_files_of_other_networks_are_refused(score, folders, tmp_path, networks, monkeypatch):
    weights = write_networks(tmp_path / "wrong")
    (weights / FILES["fvd"]).write_bytes((networks / FILES["is"]).read_bytes())
    (weights / FILES["is"]).write_bytes((networks / FILES["fvd"]).read_bytes())
    (weights / FILES["fid"]).write_text("<html>")
    words = ("--real", folders / "real")
    for metric, message in (
        ("fvd", "is not what I3D Kinetics-400 needs"),
        ("is", "gives features|is not what C3D UCF-101 needs"),
        ("fid", "is not what InceptionV3 2015-12-05 needs"),
    ):
        with pytest.raises(ValueError, match=message):
            score(folders / "made", *words, metrics=metric, weights=weights)
    replace(monkeypatch, "fvd", width=512)
    with pytest.raises(ValueError, match=r"gives features \[1, 400\], expected \[k 512\]"):
        score(folders / "made", *words)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is another file: its sha256 is .*, not bec6519f66ea"):
        main(["score", str(folders / "made"), "--real", str(folders / "real"), "--metrics", "fvd",
              "--weights", str(networks), "--out", str(tmp_path / "x.json")])  # fmt: skip


# Bad input


def refused(score, *words, **options):
    with pytest.raises(ValueError) as error:
        score(*words, **options)
    return str(error.value)


def test_folders_that_cannot_be_scored(score, folders, tmp_path):
    real = ("--real", folders / "real")
    (tmp_path / "empty").mkdir()
    assert "holds no video" in refused(score, tmp_path / "empty", *real)
    assert "holds no video" in refused(score, folders / "made", "--real", tmp_path / "empty")
    one = write_clips(tmp_path / "one", blobs(1))
    assert "asks for 2 videos, and 1 can be used" in refused(score, one, *real)
    assert "asks for 2 real videos, and 1 can" in refused(score, folders / "made", "--real", one)
    assert "needs so many videos, got 1" in refused(score, one, metrics="is")
    assert "asks for 2,048 videos, and 16 can" in refused(score, folders / "made", *real, protocol="ucf-101")
    assert "the metrics are fvd, is" in refused(score, one, metrics="fvd,psnr")
    assert "--videos must be 1 or more" in refused(score, one, videos=0)
    small = write_clips(tmp_path / "small", blobs(4, size=(48, 48)))
    message = refused(score, small, *real)
    assert "real videos are 64 x 48 and generated ones 48 x 48" in message and "--size" in message
    result, text = score(small, *real, "--size", 32, 32)
    assert result["metrics"]["fvd"]["value"] > 0 and "cropped to 32 x 32" in text
    assert result["real"]["sizes"] == {"64 x 48": 24}


def test_short_videos_are_left_out_or_padded(score, folders, tmp_path):
    real, folder = ("--real", folders / "real"), tmp_path / "short"
    write_clips(folder / "a", blobs(9, seed=6))
    write_clips(folder / "b", blobs(1, seed=7, frames=10))
    message = refused(score, folder, *real)
    assert "1 of" in message and "it has 10 frames, and the protocol all asks for 16" in message
    result, text = score(folder, *real, "--bad-share", 0.1)
    assert list(result["videos"]["bad"]) == ["b/clip 000"] and result["metrics"]["fvd"]["n"] == 9
    assert "1 videos could not be used and are left out: b/clip 000" in text
    padded, _ = score(folder, *real, "--pad")
    assert padded["metrics"]["fvd"]["n"] == 10 and padded["protocol"]["pad"] is True
    assert padded["videos"]["lengths"] == {"18": 9, "10": 1}


def test_unreadable_videos_are_listed_and_stop_it_where_they_are_many(score, folders, tmp_path):
    real, folder = ("--real", folders / "real"), write_clips(tmp_path / "bad", blobs(8, seed=6))
    for number in (1, 2):
        (folder / f"broken {number}.mp4").write_bytes(bytes(5000))
    assert "1 of" in refused(score, folder, *real)
    result, _ = score(folder, *real, "--bad-share", 0.2)
    assert sorted(result["videos"]["bad"]) == ["broken 1", "broken 2"]
    assert all("cannot be read as a video" in reason for reason in result["videos"]["bad"].values())
    assert "8 can be used" in refused(score, folder, *real, "--bad-share", 0.3, videos=9)


def test_outputs_replace_nothing(score, folders, tmp_path):
    assert "is read too" in refused(score, folders / "real", out=folders / "real" / "clip 000.npy")
    assert not list(tmp_path.glob("*.json"))


# Protocols


def test_frames_are_drawn_by_content():
    protocol = PROTOCOLS["msr-vtt"]
    chosen = protocol.choose("clip", 24, 8, HASH)
    assert len(set(chosen)) == 16 and (np.diff(chosen) > 0).all() and max(chosen) < 24
    assert (chosen == protocol.choose("clip", 24, 8, HASH)).all()
    assert (chosen != protocol.choose("clip", 24, 8, HASH[::-1])).any()
    starts = {protocol.choose("clip", 60, 8, f"{n:064x}"[::-1])[0] for n in range(300)}
    assert min(starts) < 4 and max(starts) > 36
    assert protocol.choose("frame", 24, 8, HASH)[0] in chosen
    assert (protocol.choose("all", 24, 8, HASH) == np.arange(24)).all()
    row = Protocol("x", "", frames=4, window=4).choose("clip", 30, 8, HASH)
    assert (np.diff(row) == 1).all()


def test_frames_are_taken_at_a_rate():
    protocol = Protocol("x", "", frames=5, window=5, fps=10)
    assert (protocol.choose("all", 30, 30, HASH) == np.arange(0, 30, 3)).all()
    assert (protocol.choose("all", 5, 5, HASH) == np.arange(10) // 2).all()
    assert (protocol.choose("all", 7, float("nan"), HASH) == np.arange(7)).all()
    assert (np.diff(protocol.choose("clip", 30, 30, HASH)) == 3).all()
    with pytest.raises(ValueError, match="it has 4 frames at 10 a second"):
        protocol.choose("clip", 12, 30, HASH)
    padded = Protocol("x", "", frames=5, window=5, fps=10, pad=True).choose("clip", 12, 30, HASH)
    assert padded.tolist() == [0, 3, 6, 9, 9]
    for wrong in ({"frames": 9, "window": 8}, {"fps": 0}, {"size": (0, 4)}, {"splits": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Protocol("x", "", **wrong)


# What needs no weights


def test_frames_are_measured_without_weights(score, tmp_path):
    folder = write_clips(tmp_path / "clips", blobs(5, seed=8, noise=5))
    result, text = score(folder, metrics="steadiness,warp-error,motion,change,flicker", weights=None)
    for name, measure in frames.METRICS.items():
        figure = result["metrics"][name.replace("_", "-")]
        values = [measure(video.read()[0]) for video in find_videos(folder)]
        assert figure["value"] == pytest.approx(np.mean(values), rel=1e-6), name
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] == 5
    assert "steadiness (higher is better)" in text and "all frames; at the video's own size" in text


def test_one_process_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(
        ValueError, match="score is the work of one process, got 2; start it without torchrun"
    ):
        main(["score", str(tmp_path), "--metrics", "all", "--out", str(tmp_path / "out.json")])
