"""The door for videos: what is opened, what a header may claim, and in how much memory."""

import io
import os
import socket
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import clip, numbered, peak_memory, read, read_numbers, sound, ticks, written
from PIL import Image

from univid.files import boxes, video
from univid.files.boxes import check_boxes
from univid.files.frames import MAX_PIXELS
from univid.files.media import Unreadable
from univid.files.video import open_clip
from univid.video import read_video

SECOND = 90000  # ticks of the files that `clip` makes


# ---- what is opened


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet><Representation id="1" bandwidth="1" '
    'mimeType="video/mp4"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n"
)
LISTS = {
    "addresses": HLS.format("http://{address}/a.ts"),
    "a bare socket": HLS.format("tcp://{address}"),
    "another file": HLS.format("{folder}/other.ts"),
    "a file beside it": HLS.format("other.ts"),
    "a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="http://{address}/k"\n' + HLS.format("other.ts")[8:],
    "DASH": DASH.format("http://{address}/a.mp4"),
    "concat": "ffconcat version 1.0\nfile other.ts\n",
    "concat of an address": "ffconcat version 1.0\nfile 'http://{address}/a.ts'\n",
    "session": SDP,
    "Windows Media": "[Reference]\nRef1=http://{address}/a.asf\n",
    "RTSP": "RTSPtext\nrtsp://{address}/a\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nwords\n",
    "Vapoursynth": "import os\nos.system('touch ran')\n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("suffix", [".m3u8", ".mp4"])
def test_lists_lead_nowhere(tmp_path, monkeypatch, name, suffix):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, clip(container="mpegts"), "other.ts")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        path = tmp_path / f"list{suffix}"
        path.write_text(LISTS[name].replace("{address}", address).replace("{folder}", str(tmp_path)))
        with pytest.raises(ValueError, match="cannot be read as a video: it is damaged, cut short or of no"):
            read_video(path)
        with pytest.raises(TimeoutError):
            server.accept()
    assert not (tmp_path / "ran").exists()


def test_a_film_may_not_refer_to_other_files(tmp_path):
    """QuickTime's data references: the frames are in a file of that name."""
    other = written(tmp_path, clip(), "other.mp4")
    media = clip()
    at = media.index(b"url \0\0\0\x01") - 4
    alias = (
        b"alis"
        + bytes(3)
        + b"\0"
        + struct.pack(">HH", 0, 2)
        + bytes(6 + 28 + 64 + 52)
        + bytes([5])
        + b"other"
    )
    reference = struct.pack(">I", len(alias) + 4) + alias
    moved = media[:at] + reference + media[at + 12 :]
    hidden = moved[: moved.index(b"mdat") + 4] + bytes(64) + moved[moved.index(b"mdat") + 68 :]
    with pytest.raises(ValueError) as caught:
        read_video(written(tmp_path, hidden, "film.mov"))
    assert "cannot be read as a video" in str(caught.value) and other.exists()


@pytest.mark.parametrize(
    "name",
    ["http://127.0.0.1:9/a.mp4", "concat:a|b", "file:a.mp4", "pipe:0", "data:;base64,AA", "img_%03d.png"],
)
def test_a_name_is_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="it does not exist"):
        read_video(name)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(clip(ticks(25, 3)))
    assert read_video(name)[0].shape == (1, 3, 3, 32, 128)


@pytest.mark.parametrize(
    "media, reason",
    [
        (b"words " * 99, "it is damaged, cut short or of no known format"),
        (clip()[: len(clip()) // 2], "it is damaged, cut short or of no known format"),
        (sound(), "there is no video in it"),
        (sound(cover=True), "there is no video in it"),
        (b"", "it is empty"),
    ],
    ids=["words", "cut", "sound", "cover", "empty"],
)
def test_the_reason_is_in_the_message(tmp_path, media, reason):
    with pytest.raises(
        ValueError, match=f"^{tmp_path}/clip cannot be read as a video: {reason}; give an MP4"
    ):
        read(tmp_path, media)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_picture_is_no_video(tmp_path, form):
    Image.new("RGB", (64, 64)).save(tmp_path / "clip", form)
    with pytest.raises(ValueError, match="no known format"):
        read_video(tmp_path / "clip")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="it is a pipe or device, not a file"):
            read_video(path)
    with pytest.raises(ValueError, match="it is a folder, not a file"):
        read_video(tmp_path)


def test_of_several_streams_the_film_is_taken(tmp_path):
    """A cover stands before it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        cover = out.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        film = out.add_stream("libx264", rate=25)
        film.height, film.width, film.pix_fmt = 32, 128, "yuv420p"
        blank = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        frames = [av.VideoFrame.from_ndarray(numbered(k), format="rgb24") for k in range(5)]
        out.mux(cover.encode(blank))
        out.mux([packet for frame in [*frames, None] for packet in film.encode(frame)])
        out.mux(cover.encode())
    assert read_numbers(tmp_path, file.getvalue())[0] == list(range(5))


# ---- what a header claims


def test_samples_that_have_no_room_are_refused():
    whole = clip()
    video_size = struct.pack(">I", 1)
    constant = bytearray(whole)
    at = constant.index(b"stsz")
    constant[at + 8 : at + 16] = video_size + struct.pack(">I", 2**26)
    fragments = bytearray(clip(movflags="frag_keyframe+empty_moov"))
    at = fragments.index(b"trun")
    fragments[at + 8 : at + 12] = struct.pack(">I", 2**26)
    for media in (constant, fragments, b"\0\0\0\x08free" + constant):
        with pytest.raises(
            Unreadable, match=rf"^its header speaks of 671088\d\d samples in {len(media)} bytes$"
        ):
            with open_clip(bytes(media)):
                pass
    with pytest.raises(Unreadable, match="compressed"):
        with open_clip(whole.replace(b"mvhd", b"cmov")):
            pass


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_samples_are_counted_wherever_they_stand(monkeypatch, chunk):
    monkeypatch.setattr(boxes, "CHUNK", chunk)
    for media in (clip(), clip(movflags="frag_keyframe+empty_moov"), sound()):
        file = io.BytesIO(media)
        assert boxes.has_boxes(file)
        check_boxes(file)
        counted = boxes._samples(file, 0, len(media))
        assert 0 < counted < len(media)
    assert boxes._samples(io.BytesIO(b"..stsz" + bytes(8) + b"\0\0\0\x09"), 0, 18) == 9


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("matroska", "libx264"), ("gif", "gif")])
def test_frames_that_are_too_large_are_refused(monkeypatch, container, codec):
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    media = clip(ticks(25, 3), container=container, codec=codec, pix_fmt=pixels)
    monkeypatch.setattr(video, "MAX_PIXELS", 32 * 128 - 1)
    with pytest.raises(Unreadable, match="^128 x 32 is more than 0 megapixels$"):
        with open_clip(media):
            pass
    assert MAX_PIXELS >= 8192 * 4320


def test_decoders_are_told_the_limit():
    with open_clip(clip(ticks(25, 3))) as opened:
        assert int(opened.stream.codec_context.options["max_pixels"]) == MAX_PIXELS


def test_a_clip_that_fits_no_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_BYTES", 12 * 10 * 32 * 128)
    media = clip(ticks(25, 11))
    with pytest.raises(ValueError, match="11 frames of 128 x 32 are more than the 0 GB of pixels"):
        read(tmp_path, media)
    assert len(read(tmp_path, media, frames=10)[0]) == 10
    assert read(tmp_path, media, size=(16, 16))[0].shape == (11, 16, 16, 3)


def test_a_pause_of_a_year_fills_no_memory(tmp_path):
    times = [*ticks(25, 20), 365 * 24 * 3600 * SECOND]
    with pytest.raises(ValueError, match=r"frames of 128 x 32 are more than the \d+ GB"):
        read(tmp_path, clip(times, container="matroska"))
    assert read_numbers(tmp_path, clip(times, container="matroska"), frames=30)[0] == [*range(20), *[19] * 10]


def test_frames_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAMES", 24)
    with pytest.raises(ValueError, match="it has more than 24 frames"):
        read(tmp_path, clip(ticks(25, 25)))
    assert len(read(tmp_path, clip(ticks(25, 24)))[0]) == 24


@pytest.mark.slow
@pytest.mark.parametrize("pixels, codec", [("yuv420p", "libx264"), ("yuv420p10le", "libx265")])
def test_a_second_of_4k_takes_a_bounded_memory(tmp_path, pixels, codec):
    """Beyond what PyTorch and the rest take before; each frame has 100 MB as float32."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = tmp_path / "4k.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=24, options={"preset": "ultrafast", **options})
        stream.height, stream.width, stream.pix_fmt = 2160, 3840, pixels
        ramp = np.linspace(0, 255, 3840).astype(np.uint8)[None, :, None].repeat(2160, 0).repeat(3, 2)
        for k in range(26):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(ramp, 40 * k, 1), format="rgb24")))
        out.mux(stream.encode())
    imports = "import sys, univid.video, univid.files.video\n"
    read = "print(univid.video.read_video(sys.argv[1], frames=24, size=(320, 576))[0].shape)"
    seen, peak = peak_memory(imports + read, path)
    assert "[1, 3, 24, 320, 576]" in seen
    assert peak - peak_memory(imports)[1] < 1.0
