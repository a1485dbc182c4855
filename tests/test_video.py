"""Videos through predict.py and frame by frame: times, sizes, rotation, what is broken, and what must not be opened."""

import importlib
import os
import signal
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from tests.tiny_model import write_checkpoint, write_images
from train_utils.data.images import ImageError
from train_utils.prediction.predictor import Predictor
from train_utils.show import video

SIZE = (48, 64)  # height, width


def grey(i):
    return 20 + 8 * i


def clip(path, frames=6, size=SIZE, rate=10, codec="libx264", times=None, noise=False, sound=False, faststart=False):
    """A video of grey frames, each lighter than the one before; times: of the frames, in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        if sound:
            audio = container.add_stream("aac", rate=8000)
            for _ in range(4):
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                tone.rate = 8000
                container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
        for i in range(frames):
            random = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
            pixels = random if noise else np.full((*size, 3), grey(i), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * times[i])
                stream.codec_context.time_base = frame.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path):
    """[(seconds, mean grey)], (height, width), rate of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        size = (stream.height, stream.width)
        assert len(container.streams) == 1 and container.format.name.startswith("mov")
        return [(moment, float(pixels.mean())) for moment, pixels in found], size, stream.average_rate


def same_frames(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def annotate(source, target, function=same_frames, **more):
    return video.annotate_video(video.open_video(source), source, target, function, **more)


@pytest.fixture
def run(tmp_path_factory, tmp_path, monkeypatch, command):
    weights = write_checkpoint(tmp_path_factory.mktemp("weights") / "model.pth")
    monkeypatch.chdir(tmp_path)
    return lambda *flags: command(predict, "--weights-path", weights, "--device", "cpu", *flags)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.MOV", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"),
                        ("a.webm", "libvpx-vp9")]
)  # fmt: skip
def test_frames_times_and_rate_stay(tmp_path, name, codec):
    done = annotate(clip(tmp_path / name, codec=codec, rate=12), tmp_path / "out.mp4")
    frames, size, rate = frames_of(tmp_path / "out.mp4")
    assert (done.frames, done.notes, done.broken, size) == (6, [], None, SIZE)
    assert float(rate) == pytest.approx(12, rel=0.01)
    assert [moment for moment, _ in frames] == pytest.approx([i / 12 for i in range(6)], abs=2e-3)
    assert [level for _, level in frames] == pytest.approx([grey(i) for i in range(6)], abs=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.mp4"])


def test_times_of_a_variable_rate_stay_and_every_other_frame(tmp_path):
    times = [0, 0.1, 0.5, 0.52, 1.7, 1.8]
    source = clip(tmp_path / "a.mp4", times=times)
    annotate(source, tmp_path / "out.mp4")
    assert [moment for moment, _ in frames_of(tmp_path / "out.mp4")[0]] == pytest.approx(times, abs=1e-3)
    assert annotate(source, tmp_path / "half.mp4", every=2).frames == 3
    frames, _, _ = frames_of(tmp_path / "half.mp4")
    assert [moment for moment, _ in frames] == pytest.approx(times[::2], abs=1e-3)
    assert [level for _, level in frames] == pytest.approx([grey(i) for i in (0, 2, 4)], abs=4)


def test_odd_sizes_are_padded_and_sound_is_dropped(tmp_path):
    seen = []
    done = annotate(clip(tmp_path / "a.mkv", size=(47, 63), codec="ffv1", sound=True), tmp_path / "out.mp4",
                    lambda image: seen.append(image.shape) or same_frames(image))  # fmt: skip
    assert set(seen) == {(3, 47, 63)} and frames_of(tmp_path / "out.mp4")[1] == (48, 64)
    assert done.notes == ["without its sound", "padded to 64x48, as H.264 wants even sides"]


@pytest.mark.parametrize(("matrix", "turned"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_is_applied(tmp_path, matrix, turned):
    """The matrix of the mp4's track header: turned, in quarters counter-clockwise."""
    source = clip(tmp_path / "a.mp4", frames=1, noise=True)
    upright = []
    annotate(source, tmp_path / "plain.mp4", lambda image: upright.append(image) or same_frames(image))
    content = bytearray(source.read_bytes())
    at = content.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    source.write_bytes(content)
    seen = []
    annotate(source, tmp_path / "out.mp4", lambda image: seen.append(image) or same_frames(image))
    assert torch.equal(seen[0], torch.rot90(upright[0], turned, (1, 2)))
    assert frames_of(tmp_path / "out.mp4")[1] == tuple(seen[0].shape[1:])


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_a_video_that_was_cut_off_is_written_as_far_as_it_goes(run, tmp_path, name, codec):
    whole = clip(tmp_path / name, frames=40, codec=codec, noise=True, faststart=name == "a.mp4").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    done = annotate(tmp_path / name, tmp_path / "out.mp4")
    assert 15 <= done.frames == len(frames_of(tmp_path / "out.mp4")[0]) <= 30
    assert "could not be decoded" in done.broken or "but says that it has" in done.broken
    status, out, err = run("--img-path", name, "--every", 8)
    assert status == 1 and err.startswith(f"predicted in part: {name}: ") and err.count("\n") == 1
    assert "1 of 1 image predicted, 1 in part" in out and Path("test_result.mp4").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the file is empty"), (b"hello\n" * 99, "cannot be read as a video"), (None, "cannot be read as a video")],
)
def test_what_is_no_video_is_named(run, tmp_path, content, said):
    if content is None:  # without the index, which is at its end
        content = clip(tmp_path / "whole.mp4").read_bytes().partition(b"moov")[0]
    (tmp_path / "a.mp4").write_bytes(content)
    status, out, err = run("--img-path", "a.mp4")
    assert status == 2 and err == f"not predicted: a.mp4: {err.split('a.mp4: ')[1]}" and said in err
    assert "0 of 1 image predicted, 1 could not be read" in out and not list(tmp_path.glob("test_result*"))
    assert run("--img-path", "a.mp4", "--strict")[0] == 2


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile other.mkv\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nother.mkv\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
           "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            '<Representation id="1" mimeType="video/mp4"><BaseURL>other.mkv</BaseURL></Representation></AdaptationSet>'
            "</Period></MPD>\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_leads_nowhere(run, tmp_path, kind):
    other = clip(tmp_path / "other.mkv")
    (tmp_path / "a.mp4").write_text(PLAYLISTS[kind])
    if kind == "concat":  # which PyAV alone would follow
        with av.open("a.mp4") as container:
            assert len(list(container.decode(video=0))) == 6
    os.utime(other, (1, 1))
    status, _, err = run("--img-path", "a.mp4")
    assert status in (1, 2) and "a.mp4: " in err and err.count("\n") == 1
    assert (status == 2 and "a playlist is not followed" in err) or kind != "concat"
    assert not list(tmp_path.glob("test_result*"))


def test_too_large_frames_and_other_codecs_are_refused(tmp_path, monkeypatch):
    source = clip(tmp_path / "a.mp4")
    with monkeypatch.context() as patch, pytest.raises(video.InputError, match="64x48 are too large"):
        patch.setattr(video, "MOST_PIXELS", 3000)
        video.open_video(source)
    with pytest.raises(ImageError, match="no frame could be read"):  # frames larger than the header says
        container = video.open_video(source)
        container.streams.video[0].codec_context.options = {"max_pixels": "3000"}
        video.annotate_video(container, source, tmp_path / "out.mp4", same_frames)
    monkeypatch.setattr(video, "CODECS", "vp9")
    with pytest.raises(video.InputError, match="codec is not one that is read"):
        video.open_video(source)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_of_images_and_videos(run, tmp_path, monkeypatch):
    monkeypatch.setattr("train_utils.prediction.predictor.FEW", 0)
    write_images(tmp_path / "in")
    clip(tmp_path / "in" / "clip.avi", codec="mpeg4", frames=3)
    status, out, err = run("--img-path", "in", "--output-dir", "out", "--score", 0, "--box-detections-per-img", 1)
    assert status == 0, err
    assert "4 images have 1 detection, all that" in out and "3 frames have 1 detection, all that" in out
    assert "3 frames are drawn without boxes around masks, with more than 0 objects in a frame\n" in out
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "clip.mp4", "test_result.json"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    assert "in/clip.avi: 3 frames in " in out and "frames/s -> out/clip.mp4" in out
    frames, size, _ = frames_of("out/clip.mp4")
    assert len(frames) == 3 and size == SIZE


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_whole_video(run, tmp_path, monkeypatch, number, status):
    clip(tmp_path / "a.mp4", frames=9)
    detect, seen = Predictor.detect, []

    def signalled(self, image, tally):
        seen.append(image)
        if len(seen) == 4:
            os.kill(os.getpid(), number)
        return detect(self, image, tally)

    monkeypatch.setattr(Predictor, "detect", signalled)
    ended, out, err = run("--img-path", "a.mp4")
    assert ended == status and "a.mp4: 4 frames in " in out and err == ""
    assert len(frames_of("test_result.mp4")[0]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "test_result.mp4"]


def test_a_camera_runs_until_ctrl_c(run, tmp_path, monkeypatch):
    source = clip(tmp_path / "a.mp4", frames=9)
    detect, seen = Predictor.detect, []
    opened = av.open

    def open_device(name, mode="r", **options):
        return opened(name, mode, **options) if mode == "w" else seen.append((name, options)) or opened(str(source))

    def signalled(self, image, tally):
        seen.append(image)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return detect(self, image, tally)

    with monkeypatch.context() as patch:
        patch.setattr(av, "open", open_device)
        patch.setattr(sys, "platform", "linux")
        patch.setattr(Predictor, "detect", signalled)
        status, out, err = run("--img-path", "3")
    assert status == 0 and seen[0] == ("/dev/video3", {"format": "v4l2"}), err
    assert "camera 3: 3 frames in " in out and len(frames_of("test_result.mp4")[0]) == 3


def test_no_camera_is_one_line(run, tmp_path):
    status, _, err = run("--img-path", "97")
    assert status == 2 and err.startswith("error: --img-path 97: no camera") and err.count("\n") == 1


@pytest.mark.parametrize("source", ["a.mp4", "0"])
def test_without_pyav_it_says_what_to_install(run, tmp_path, monkeypatch, source):
    clip(tmp_path / "a.mp4", frames=1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError):
        importlib.import_module("av")
    status, _, err = run("--img-path", source)
    assert status == 2 and "pip install -r requirements-video.txt" in err and err.count("\n") == 1


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    source = clip(tmp_path / "a.mp4", frames=2)
    with pytest.raises(video.InputError, match="could not be written"):
        annotate(source, tmp_path / "missing" / "out.mp4")
