"""Which frames of a video are shown when: the rate of a file, its pauses, its bursts and its jitter."""

import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
import torch
from clip_files import clip, numbered, numbers, read_numbers, ticks, written
from PIL import Image

from univid.video import read_video, to_uint8

SECOND = 90000  # ticks of the files that `clip` makes


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("fps", [8, 12.5, 24, 25, Fraction(30000, 1001), 60])
def test_an_even_clip_is_read_frame_by_frame(tmp_path, container, fps):
    media = clip(ticks(fps, 100, first=3), container=container, g="12", bf="2")
    for frames in (None, 1, 2, 24, 60, 99, 100, 300):
        got, rate = read_numbers(tmp_path, media, frames=frames)
        assert got == list(range(min(frames or 100, 100)))
        assert rate == pytest.approx(float(fps), rel=2e-3)


def test_a_recording_lasts_as_long_as_it_did(tmp_path):
    """30 frames in the first second, then 3 a second; and the other way round."""
    rare = [SECOND * k // 3 for k in range(6)]
    dense = ticks(30, 30)
    for times in ([*dense, *(SECOND + t for t in rare)], [*rare, *(2 * SECOND + t for t in dense)]):
        for container in ("mp4", "matroska"):
            got, rate = read_numbers(tmp_path, clip(times, container=container))
            assert rate == pytest.approx(30, rel=0.01)
            assert len(got) / rate == pytest.approx(3, abs=0.4)
            for i, number in enumerate(got):  # the frame that is shown at this time, or within half a step
                shown = max(k for k, time in enumerate(times) if time <= (i + 0.51) / rate * SECOND)
                assert number == shown
            assert set(got) == set(range(36))  # none is lost


def test_the_beginning_of_an_uneven_clip_is_that_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    times = (np.cumsum(rng.choice([1, 1, 1, 1, 3, 9], 150)) * SECOND // 25).tolist()
    media = clip(times, g="20", bf="2")
    whole, rate = read_numbers(tmp_path, media)
    assert rate == pytest.approx(25, rel=0.01)
    for frames in (1, 7, 40, 90):
        assert read_numbers(tmp_path, media, frames=frames)[0] == whole[:frames]


def test_a_jitter_of_the_clock_drops_no_frame(tmp_path):
    """As phones record: each frame up to a third of a step early or late."""
    rng = np.random.default_rng(1)
    times = [int((k + 1 + rng.uniform(-0.33, 0.33)) / 30 * SECOND) for k in range(120)]
    got, rate = read_numbers(tmp_path, clip(times))
    assert got == list(range(120)) and rate == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize(
    "delays, fps, shown",
    [
        ([100, 100, 100], 10, [0, 1, 2]),
        ([40, 40, 40, 50, 40, 40], 24, [0, 1, 2, 3, 4, 5]),
        ([100, 100, 300, 100], 10, [0, 1, 2, 2, 2, 3]),
        ([100, 100, 100, 500], 10, [0, 1, 2, 3, 3, 3, 3, 3]),  # a pause before it begins anew
        ([1000, 100, 100, 100], 10, [0] * 10 + [1, 2, 3]),
    ],
)
def test_the_delays_of_a_gif_count(tmp_path, delays, fps, shown):
    pictures = [Image.fromarray(numbered(k)) for k in range(len(delays))]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=delays, loop=0)
    frames, rate = read_video(tmp_path / "a.gif")
    assert numbers(torch.from_numpy(to_uint8(frames))) == shown
    assert rate == pytest.approx(fps, rel=0.04)  # its clock counts 1/100 s


def test_a_clip_of_one_frame(tmp_path):
    for container, codec, pixels in (("mp4", "libx264", "yuv420p"), ("gif", "gif", "rgb8")):
        got, rate = read_numbers(tmp_path, clip([0], container=container, codec=codec, pix_fmt=pixels))
        assert got == [0] and 1 <= rate <= 50


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")
def test_uneven_clips_are_what_ffmpeg_makes_of_them_at_a_fixed_rate(tmp_path):
    rng = np.random.default_rng(2)
    times = (np.cumsum(rng.choice([1, 1, 1, 2, 5], 100)) * SECOND // 30).tolist()
    path = written(tmp_path, clip([time - times[0] for time in times]), "a.mp4")
    to = ["-vf", "fps=30", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.check_output(["ffmpeg", "-v", "error", "-i", path, *to])
    theirs = numbers(torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, 32, 128, 3).copy()))
    ours, rate = read_numbers(tmp_path, path.read_bytes())
    assert rate == pytest.approx(30, rel=1e-3)
    assert ours[: len(theirs)] == theirs[: len(ours)] and abs(len(ours) - len(theirs)) <= 2
