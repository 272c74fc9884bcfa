import io
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clip_files import REAL, clip, damaged, numbered, numbers, sound, ticks

from training.data.decode import available_frames, decode_clip, media_size
from training.data.samples import BadSample
from univid.files import video
from univid.files.frames import SD_HEIGHT, rgb

NTSC = Fraction(30000, 1001)

# what containers round times to; others hold what `clip` is given
TICKS = {
    "matroska": Fraction(1, 1000),
    "webm": Fraction(1, 1000),
    "flv": Fraction(1, 1000),
    "gif": Fraction(1, 100),
}


def shown(times, frames, fps, window=0.0, start=0.0, end=1e9, tick=Fraction(1, 90000)):
    """Which frames are shown, reckoned with fractions one by one; times in 1/90000 s.

    tick: what the file rounds times to: one may stand that much later after another than it is meant to.
    """
    times = {k: Fraction(round(Fraction(time, 90000) / tick) * tick) for k, time in enumerate(times)}
    times = {k: time - times[0] for k, time in times.items()}
    start, end = (Fraction(at).limit_denominator(1000) for at in (start, end))
    times = {k: time for k, time in times.items() if start <= time < end}
    first, last = min(times.values()), max(times.values())
    step = min(1 / Fraction(fps), (last - first) / max(1, frames - 1))
    begin = first + Fraction(window) * (last - first - (frames - 1) * step)
    begin = max(t for t in times.values() if t <= begin + tick)
    return [max(k for k, t in times.items() if t <= begin + i * step + tick) for i in range(frames)]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("fps", [24, 25, 30, NTSC, 8])
def test_frames_are_those_shown_at_their_times(container, fps):
    times = ticks(fps, 80, first=7)  # the first frame does not begin at 0
    media = clip(times, container=container, g="12")
    for frames, rate, window in [
        (24, 8, 0),
        (24, 8, 1),
        (17, 8, 0.37),
        (9, 3.7, 0.5),
        (20, fps, 0.9),
        (1, 8, 0.6),
    ]:
        got = numbers(decode_clip(media, frames=frames, fps=rate, window=window))
        truth = shown(times, frames, rate, window, tick=TICKS.get(container, Fraction(1, 90000)))
        assert got == truth, (frames, rate, window)
        assert len(set(got)) == frames


def test_frames_of_irregular_clips_are_those_shown_at_their_times():
    chance = random.Random(0)
    times = [90 * 500]
    for _ in range(99):
        times.append(times[-1] + 90 * chance.choice([17, 33, 34, 50, 180]))
    media = clip(times, container="matroska", g="10")
    for window in (0, 0.11, 0.5, 0.93, 1):
        got = numbers(decode_clip(media, frames=24, fps=8, window=window))
        assert got == shown(times, 24, 8, window, tick=TICKS["matroska"])
        # negative control: the indices of a clip with a steady rate are others
        steady = ticks(Fraction(99 * 90000, times[-1] - times[0]), 100)
        assert got != shown(steady, 24, 8, window)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
@pytest.mark.parametrize("start, end", [(0, 2), (1.2, None), (2.0, 3.6), (2.02, 3.55), (6.4, None)])
def test_only_frames_between_start_and_end_are_shown(container, start, end):
    times = ticks(25, 200)
    media = clip(
        times, container=container, codec="mpeg4" if container == "avi" else "libx264", g="30", bf="2"
    )
    for window in (0, 0.4, 1):
        got = numbers(decode_clip(media, frames=12, fps=8, start=start, end=end, window=window))
        assert got == shown(times, 12, 8, window, start, 1e9 if end is None else end)
    inside = [k for k in range(200) if 25 * start - 1e-9 <= k < 25 * (end or 1e9) - 1e-9]
    assert available_frames(media, start=start, end=end) == len(inside)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_of_a_long_film_only_the_part_is_read(container):
    times = ticks(25, 250)
    media = clip(times, container=container, g="12", bf="2")
    with video.open_clip(media) as opened:
        assert len(opened._packets(0, None)) == 250
    with video.open_clip(media) as opened:
        packets = opened._packets(6.0, 7.0)
        assert 25 <= len(packets) < 25 * 2 + 24 + 6  # a second and a group before it, and frames to come
        timeline = opened.timeline(6.0, 7.0)
        assert len(timeline.times) == 25 and timeline.times[0] == pytest.approx(6.0)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_no_more_is_decoded_than_needed(container):
    with video.open_clip(clip(ticks(25, 250), container=container, g="12", bf="2")) as opened:
        timeline = opened.timeline(0, None)
        assert len(list(opened._decoded(timeline, timeline.times[240]))) < 250 - 240 + 24


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("mpegts", "mpeg2video"), ("mp4", "mpeg4")])
@pytest.mark.parametrize("late", [0.0, 0.3, 9.0])
def test_a_file_that_is_searched_badly_is_read_from_its_beginning(monkeypatch, container, codec, late):
    """Some containers find no key frame, or one that comes too late."""
    media = clip(ticks(25, 100), container=container, codec=codec, g="12")

    def seek(self, timestamp):
        self.container.seek(timestamp + int(late / self.stream.time_base), stream=self.stream, any_frame=True)
        return True

    truth = [decode_clip(media, frames=8, fps=8, window=w, start=s) for w in (0.3, 1) for s in (0, 1.7)]
    monkeypatch.setattr(video.Clip, "_seek", seek)
    found = [decode_clip(media, frames=8, fps=8, window=w, start=s) for w in (0.3, 1) for s in (0, 1.7)]
    assert all(map(torch.equal, truth, found))


CODECS = {
    "B-frames": dict(g="12", bf="3"),
    "open groups": dict(g="12", bf="3", **{"x264-params": "open-gop=1"}),
    "intra refresh": dict(g="12", **{"intra-refresh": "1"}),
    "fragments": dict(g="12", movflags="frag_keyframe+empty_moov"),
    "H.264 in a transport stream": dict(container="mpegts", g="12", bf="3"),
    "HEVC": dict(codec="libx265", g="12", **{"x265-params": "log-level=none"}),
    "VP9": dict(container="webm", codec="libvpx-vp9", g="12"),
    "VP8": dict(container="webm", codec="libvpx", g="12", **{"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "MPEG-2": dict(container="mpeg", codec="mpeg2video", g="12", bf="2"),
    "MPEG-4": dict(container="avi", codec="mpeg4", g="12", bf="2"),
    "H.264 in AVI": dict(container="avi", g="12", bf="3"),
    "no container": dict(container="h264", g="12", bf="3"),
    "GIF": dict(container="gif", codec="gif", pix_fmt="rgb8"),
    "Flash": dict(container="flv", codec="flv", g="12"),
    "ProRes, 10 bit": dict(container="mov", codec="prores_ks", pix_fmt="yuv422p10le"),
    "10 bit": dict(pix_fmt="yuv420p10le", g="12", bf="3"),
}


def all_frames(media):
    with av.open(io.BytesIO(media)) as file:
        return [rgb(frame, 1.0, None) for frame in file.decode(video=0)]


@pytest.mark.parametrize("name", CODECS)
def test_seeking_equals_decoding_from_the_beginning(name):
    media = clip(ticks(25, 70), **CODECS[name])
    everything = all_frames(media)
    assert len(everything) == 70
    for window in (0, 0.35, 0.71, 1):
        got = decode_clip(media, frames=8, fps=8, window=window)
        tick = TICKS.get(CODECS[name].get("container"), Fraction(1, 90000))
        chosen = shown(ticks(25, 70), 8, 8, window, tick=tick)
        assert numbers(got) == chosen
        assert np.array_equal(got, np.stack([everything[k] for k in chosen]))


@pytest.mark.parametrize("name, size", [("bikes", (272, 640)), ("carphone_pristine", (144, 193))])
def test_real_clips(name, size):
    path = REAL / f"{name}.mp4"
    media = path.read_bytes()
    assert media_size(media) == media_size(path) == size
    with av.open(str(path)) as file:
        rate = file.streams.video[0].average_rate
    if size[1] != 193:  # its pixels are not square: 176 of 128:117
        everything = all_frames(media)
        for window in (0, 0.5, 1):
            got = decode_clip(path, frames=24, fps=8, window=window)
            assert got.shape == (24, *size, 3) and got.dtype == torch.uint8
            chosen = shown(ticks(rate, len(everything)), 24, 8, window)
            assert np.array_equal(got, np.stack([everything[k] for k in chosen]))
            assert torch.equal(got, decode_clip(media, frames=24, fps=8, window=window))
    assert decode_clip(media, frames=24, fps=8).shape == (24, *size, 3)


def test_a_short_clip_is_taken_at_a_denser_rate():
    media = clip(ticks(25, 20))
    assert available_frames(media) == 20
    assert available_frames(media, fps=8) == 7  # at 0, 1/8 .. 6/8 of 0.76 s
    assert numbers(decode_clip(media, frames=7, fps=8, window=0)) == [0, 3, 6, 9, 12, 15, 18]
    for window in (0, 1):  # there is no free room
        assert numbers(decode_clip(media, frames=20, fps=8, window=window)) == list(range(20))
        assert numbers(decode_clip(media, frames=10, fps=8, window=window)) == shown(ticks(25, 20), 10, 8)
    with pytest.raises(BadSample, match="^20 frames in 0.76 s, 21 are needed$"):
        decode_clip(media, frames=21, fps=8)


@pytest.mark.parametrize("fps", [8, 24, NTSC, 30])
def test_available_frames_are_those_at_the_full_rate(fps):
    times = ticks(fps, 61)
    media = clip(times)
    n = available_frames(media, fps=8)
    assert n == 60 * 8 // fps + 1
    at_rate = [max(k for k, t in enumerate(times) if t <= i * 90000 / 8 + 2) for i in range(n)]
    assert numbers(decode_clip(media, frames=n, fps=8)) == at_rate
    if n < 61:  # negative control: one more is not to be had at this rate
        more = numbers(decode_clip(media, frames=n + 1, fps=8))
        assert more[1:] != [*at_rate[1:], more[-1]] or fps == 24


def test_a_clip_slower_than_the_rate_is_no_sample():
    media = clip(ticks(5, 50))
    with pytest.raises(BadSample, match="^5 frames per second, 8 are needed$"):
        decode_clip(media, frames=16, fps=8)
    assert available_frames(media, fps=8) == 1
    assert numbers(decode_clip(media, frames=16, fps=5)) == list(range(16))
    assert len(numbers(decode_clip(clip(ticks(Fraction(15, 2), 50)), frames=16, fps=8))) == 16  # nearly


def test_a_clip_of_one_frame():
    media = clip([0])
    assert available_frames(media) == available_frames(media, fps=8) == 1
    for window in (0, 1):
        assert numbers(decode_clip(media, frames=1, fps=8, window=window)) == [0]
    with pytest.raises(BadSample, match="^1 frames in 0.00 s, 8 are needed$"):
        decode_clip(media, frames=8, fps=8)


@pytest.mark.parametrize(
    "media, reason",
    [
        (b"", "it is empty"),
        (b"what is this?" * 99, "it is damaged, cut short or of no known format"),
        (clip()[: len(clip()) // 2], "it is damaged, cut short"),  # the index is at the end
        (sound(), "there is no video in it"),
        (sound(cover=True), "there is no video in it"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hosts\n#EXT-X-ENDLIST\n", "it is damaged, .* of no known format"),
        (b"ffconcat version 1.0\nfile clip.mp4\n", "it is damaged, .* of no known format"),
        (Path("nowhere") / "clip.mp4", "it does not exist"),
        (Path("tests"), "it is a folder, not a file"),
        (Path("/dev/zero"), "it is a pipe or device"),
    ],
    ids=lambda value: None if isinstance(value, (bytes, Path)) else value[-20:],
)
def test_what_is_no_clip_is_a_bad_sample(media, reason):
    for use in (lambda: decode_clip(media, frames=1, fps=8), lambda: available_frames(media)):
        with pytest.raises(BadSample, match=f"^{reason}") as caught:
            use()
        assert len(str(caught.value)) < 160 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "container, movflags", [("mp4", "faststart"), ("mp4", "frag_keyframe+empty_moov"), ("matroska", "")]
)
def test_a_cut_clip_is_as_long_as_what_is_left(tmp_path, container, movflags):
    path = tmp_path / "clip"
    clip(ticks(25, 100), container=container, g="10", movflags=movflags, file=str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    n = available_frames(path)
    assert 10 < n < 90
    assert numbers(decode_clip(path, frames=10, fps=25)) == list(range(10))
    with pytest.raises(BadSample, match="frames in .* s, 100 are needed"):
        decode_clip(path, frames=100, fps=25)


def test_missing_frames_are_damage(monkeypatch):
    media = clip(ticks(25, 60), g="60")
    real = video.Clip._from_key_frame
    gap = lambda self, origin: ((t, f) for t, f in real(self, origin) if not 0.9 < t < 1.3)  # noqa: E731
    monkeypatch.setattr(video.Clip, "_from_key_frame", gap)
    assert numbers(decode_clip(media, frames=4, fps=8)) == [0, 3, 6, 9]
    with pytest.raises(BadSample, match="^it is damaged at 1.00 s$"):
        decode_clip(media, frames=16, fps=8)


def test_frames_of_several_sizes_are_a_bad_sample():
    file = io.BytesIO(clip(ticks(25, 10), container="h264") + clip(
        ticks(25, 10), container="h264", frames=[numbered(k, 64, 64) for k in range(10)]
    ))  # fmt: skip
    with pytest.raises(BadSample, match="several sizes"):
        decode_clip(file.getvalue(), frames=20, fps=25)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_turned_and_mirrored_clips_are_upright(degrees, mirror):
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:20, :30] = 255, 0, 0
    picture[30:, 50:] = 0, 0, 255
    media = clip(ticks(25, 3), frames=[picture] * 3, turn=(degrees, *mirror), crf="1")
    upright = np.rot90(picture, degrees // 90)
    upright = upright[:, ::-1] if mirror[0] else upright
    upright = upright[::-1] if mirror[1] else upright
    got = decode_clip(media, frames=2, fps=8)[0].float()
    assert got.shape == upright.shape
    assert media_size(media) == upright.shape[:2]
    error = (got - torch.from_numpy(upright.copy()).float()).abs().mean()
    assert error < 8
    assert (got - torch.from_numpy(upright[::-1, ::-1].copy()).float()).abs().mean() > 40  # negative control


def test_pixels_become_square():
    disc = np.hypot(*np.mgrid[-1:1:96j, -1.5:1.5:72j]) < 0.9  # round on a 96 x 144 screen
    media = clip(ticks(25, 3), frames=[np.uint8(disc)[..., None].repeat(3, -1) * 255] * 3, aspect=Fraction(2))
    pixels = decode_clip(media, frames=1, fps=8)[0, ..., 0] > 127
    assert pixels.shape == (96, 144) and media_size(media) == (96, 144)
    assert abs(int(pixels.any(0).sum()) - int(pixels.any(1).sum())) <= 2


@pytest.mark.parametrize("height, width", [(45, 81), (33, 17), (2, 2)])
def test_odd_sizes(height, width):
    picture = np.full((height, width, 3), 130, np.uint8)
    media = clip(ticks(25, 3), frames=[picture] * 3, pix_fmt="yuv444p")
    got = decode_clip(media, frames=3, fps=25)
    assert got.shape == (3, height, width, 3) and (got.int() - 130).abs().max() < 4


@pytest.mark.parametrize("height", [96, 736])
def test_colours_without_a_named_matrix_are_those_that_players_show(height):
    red = np.full((height, 64, 3), (200, 30, 30), np.uint8)
    frame = av.VideoFrame.from_ndarray(red, format="rgb24")
    matrix = "itu709" if height > SD_HEIGHT else "itu601"
    frame = frame.reformat(format="yuv444p", dst_colorspace=matrix)
    planes = [np.frombuffer(p, np.uint8).reshape(height, -1)[:, :64] for p in frame.planes]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = height, 64, "yuv444p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack(planes), format="yuv444p")))
        out.mux(stream.encode())
    got = decode_clip(file.getvalue(), frames=1, fps=8)[0, 5, 5].int()
    assert (got - torch.tensor([200, 30, 30])).abs().max() < 5


def test_larger_frames_are_halved_for_their_bucket():
    picture = np.zeros((512, 768, 3), np.uint8)
    picture[:256, :384] = 255
    media = clip(ticks(25, 3), frames=[picture] * 3, turn=(90,))
    assert media_size(media) == (768, 512)
    for cover, size in {(64, 64): (192, 128), (256, 64): (768, 512), (180, 120): (384, 256)}.items():
        got = decode_clip(media, frames=2, fps=8, cover=cover)
        assert got.shape[1:3] == size
        quarter = got[0, size[0] // 2 + 8 :, : size[1] // 2 - 8].float().mean()  # turned to the left below
        assert quarter > 245 and got[0].float().mean() < 75


def test_bad_arguments_are_the_callers_error():
    for bad in (dict(frames=0), dict(fps=0), dict(window=1.1), dict(window=-0.1)):
        with pytest.raises(ValueError, match="expected frames >= 1"):
            decode_clip(clip([0]), **{"frames": 1, "fps": 8} | bad)


def test_a_file_name_is_never_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("concat:a|b.mp4").write_bytes(clip())
    assert numbers(decode_clip(Path("concat:a|b.mp4"), frames=2, fps=25)) == [0, 1]


def test_one_thread_decodes():
    with video.open_clip(clip()) as opened:
        assert opened.stream.codec_context.thread_count == 1
        next(opened.container.decode(opened.stream))
        assert opened.stream.codec_context.thread_count == 1


@pytest.mark.parametrize(
    "name", ["B-frames", "fragments", "VP9", "MPEG-4", "GIF", "H.264 in a transport stream"]
)
def test_damaged_clips_are_frames_or_bad_samples(name):
    chance, media, outcomes = random.Random(1), clip(**CODECS[name]), []
    for _ in range(60):
        hurt = damaged(media, chance)
        for use in (
            lambda media: decode_clip(media, frames=8, fps=8, window=0.7, start=0.2),
            lambda media: available_frames(media, fps=8),
            media_size,
        ):
            try:
                use(hurt)
                outcomes.append(True)
            except BadSample as error:
                outcomes.append(False)
                assert len(str(error)) < 160
    assert {True, False} == set(outcomes)
