"""Reads videos and cameras frame by frame, and writes videos, through the optional PyAV (requirements-video.txt).

A video is decoded by a few demuxers and codecs alone, and from its own file: a playlist, whatever its name ends in,
could name any other file or address. Frames keep their times, so that a variable frame rate stays as it is.
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.images import ImageError
from train_utils.io import files
from train_utils.io.plain_text import counted
from train_utils.io.unfinished import rename, unfinished_file

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp"}
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,asf,flv"
CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,mpeg4,mpeg2video,mpeg1video,mjpeg,h263,msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,"
    "vc1,flv,prores,dvvideo,ffv1,rawvideo"
)
MOST_PIXELS = 2**26  # of a frame: 8K has half as many
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("vfwcap", "{}")}
USUAL_RATE = 25  # frames per second, where a source gives none
EARLY = 1.0  # seconds that a video may be shorter than its file says: its sound may be longer


class Written(NamedTuple):
    """What became of a video: frames written, seconds that took, notes for people; broken: what is missing, or None."""

    frames: int
    seconds: float
    notes: list[str]
    broken: str | None


def is_video(path: Path) -> bool:
    """Returns whether a path has a video's suffix."""
    return path.suffix.lower() in SUFFIXES


def camera_number(img_paths: list[str]) -> int | None:
    """Returns the N of `--img-path N`, unless there is a file of that name."""
    (name, *more) = img_paths
    return int(name) if not more and name.isascii() and name.isdecimal() and not Path(name).exists() else None


def pyav() -> ModuleType:
    """Imports PyAV, the module `av`; raises InputError, which says how to install it."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(f"videos and cameras need PyAV ({error}): pip install -r requirements-video.txt") from error


def open_video(path: Path) -> Any:
    """Opens a video with PyAV; returns the container, which has a video stream.

    Raises ImageError for a file that is broken or holds no video; another InputError for one that is not to be decoded:
    a playlist, an unusual format, far too large frames.
    """
    av = pyav()
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS, "codec_whitelist": CODECS}
    try:
        container = av.open(str(path.resolve()), options=options)  # a whole path: no name of a protocol
    except av.error.ArgumentError as error:
        raise InputError(
            f"{path}: not in a video format that is read ({DEMUXERS.replace(',', ', ')}); a playlist is "
            "not followed; convert it to mp4"
        ) from error
    except (av.FFmpegError, UnicodeError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        reason = "the file is empty" if empty else f"cannot be read as a video: {_reason(error)}"
        raise ImageError(path, reason) from error
    try:
        if not container.streams.video:
            raise ImageError(path, "holds no video that is read (take H.264, HEVC, AV1, VP9, MPEG-4, ...)")
        codec = container.streams.video[0].codec_context
        if codec is None or codec.name not in CODECS.split(","):
            raise InputError(f"{path}: its codec is not one that is read; convert it to H.264")
        if codec.width * codec.height > MOST_PIXELS:
            raise InputError(f"{path}: frames of {codec.width}x{codec.height} are too large; scale it down")
        codec.options = {"max_pixels": str(MOST_PIXELS)}  # frames within may be larger than the header says
    except BaseException:
        container.close()
        raise
    return container


def open_camera(number: int) -> Any:
    """Opens a camera as a container; raises InputError where there is none."""
    av = pyav()
    if sys.platform not in CAMERAS:
        raise InputError(f"--img-path {number}: cameras are not known on {sys.platform}")
    driver, name = CAMERAS[sys.platform]
    try:
        return av.open(name.format(number), format=driver)
    except (av.FFmpegError, ValueError) as error:
        raise InputError(
            f"--img-path {number}: no camera {name.format(number)} ({_reason(error)}); "
            "give a file, a folder, or another number"
        ) from error


def annotate_video(
    container: Any,
    source: object,
    target: Path,
    annotate: Callable[[torch.Tensor], Image.Image],
    every: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Written:
    """Writes every `every`-th frame of an open container, as annotate gives it, to the mp4 file `target`.

    annotate: uint8 [3, H, W] RGB, upright -> image, of one size for all. stopped: asked before each frame, True
    ends the video there, whole. source: what messages call it. The container is closed. Raises ImageError for a video
    without a readable frame, InputError where the target cannot be written; there is no target then.
    """
    start, reader, writer = time.perf_counter(), _Reader(container, source), None
    bar = tqdm(total=reader.expected_frames(), unit="frame", disable=None)
    with files.writing(target), unfinished_file(target.parent) as (file, temporary):
        with container, bar:
            for count, (image, moment) in enumerate(reader.frames()):
                if stopped():
                    reader.stopped = True
                    break
                if count % every == 0:
                    frame = np.asarray(annotate(image))
                    writer = writer or _Writer(file, target, frame.shape[:2], reader, every)
                    writer.write(frame, moment)
                bar.update()
        if writer is None and not reader.stopped:
            raise ImageError(source, f"no frame could be read{reader.reason()}")
        if writer is None:
            return Written(0, time.perf_counter() - start, [], None)
        writer.close()
        rename(file, temporary, target)
    return Written(writer.count, time.perf_counter() - start, reader.notes() + writer.notes(), reader.broken())


class _Reader:
    """The frames of a container's first video stream, and what is wrong with it."""

    def __init__(self, container: Any, source: object) -> None:
        self.container, self.source, self.sound = container, source, bool(container.streams.audio)
        self.stream = container.streams.video[0]
        of_stream = self.stream.duration and float(self.stream.duration * self.stream.time_base)
        whole = container.duration and container.duration / 1e6  # in microseconds; its sound may be longer
        self.seconds = min((value for value in (of_stream, whole) if value), default=None)  # as the file says
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = Fraction(rate) if rate and 0.1 <= rate <= 1000 else Fraction(USUAL_RATE)
        if container.format.name == "avi" and self.stream.frames:  # its durations follow from the file's length
            self.seconds = float(self.stream.frames / self.rate)
        self.size, self.scaled, self.bad, self.error, self.end, self.stopped = None, 0, 0, None, None, False

    def frames(self) -> Iterator[tuple[torch.Tensor, Fraction]]:
        """Yields (uint8 [3, H, W], seconds since the first frame), upright; all in the size of the first."""
        first = None
        for frame in self._decoded():
            if self.size is None:
                self.size = frame.width, frame.height
            self.scaled += (frame.width, frame.height) != self.size
            pixels = frame.to_ndarray(format="rgb24", width=self.size[0], height=self.size[1])  # [H, W, 3]
            pixels = np.rot90(pixels, round(frame.rotation / 90))  # counter-clockwise, as the angle
            known = frame.pts is not None and frame.time_base
            first = frame.pts * frame.time_base if known and first is None else first
            moment = frame.pts * frame.time_base - first if known else (self.end or 0) + 1 / self.rate
            self.end = moment
            yield torch.from_numpy(pixels.transpose(2, 0, 1).copy()), Fraction(moment)

    def _decoded(self) -> Iterator[Any]:
        av = pyav()
        try:
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except av.error.EOFError:
                    return
                except av.FFmpegError as error:
                    self._count(error)
        except av.FFmpegError as error:  # the file ends in the middle of something
            self._count(error)

    def _count(self, error: Exception) -> None:
        self.bad, self.error = self.bad + 1, self.error or _reason(error)

    def expected_frames(self) -> int | None:
        return self.stream.frames or (round(self.seconds * self.rate) if self.seconds else None)

    def reason(self) -> str:
        """Returns the first error, in brackets."""
        return f" ({self.error})" if self.error else ""

    def broken(self) -> str | None:
        """Returns what is missing of the video, None if nothing is."""
        if self.bad:
            return f"{counted(self.bad, 'part')} of it could not be decoded{self.reason()}; what could is written"
        if not self.stopped and self.seconds and self.end is not None and self.end + EARLY < self.seconds:
            return f"ends after {float(self.end):.1f} s, but says that it has {self.seconds:.1f} s; that is written"
        return None

    def notes(self) -> list[str]:
        notes = ["without its sound"] if self.sound else []
        return notes + (
            [f"{counted(self.scaled, 'frame')} of another size scaled to the first's"] if self.scaled else []
        )


class _Writer:
    """An mp4 file of H.264 (MPEG-4 where PyAV has no x264), frames at their own times."""

    def __init__(self, file: BinaryIO, path: Path, size: tuple[int, int], reader: _Reader, every: int) -> None:
        self.av, self.path, self.count, self.last, self.size = pyav(), path, 0, -1, size
        base = reader.stream.time_base
        # of the source, so that times stay exact; where that is none to write, MPEG's own
        self.base = base if base and base.numerator < 2**16 and base.denominator < 2**24 else Fraction(1, 90000)
        codec = "libx264" if "libx264" in self.av.codecs_available else "mpeg4"
        self.container = self.av.open(file, "w", format="mp4")
        self.stream = self.container.add_stream(codec, rate=reader.rate / every)
        self.stream.height, self.stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self.stream.pix_fmt, self.stream.codec_context.time_base = "yuv420p", self.base

    def write(self, image: np.ndarray, moment: Fraction) -> None:
        """Adds an image [H, W, 3] at `moment` seconds."""
        height, width = self.size
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self.av.VideoFrame.from_ndarray(even, format="rgb24")
        self.last = max(round(moment / self.base), self.last + 1)  # times must rise
        frame.pts, frame.time_base = self.last, self.base
        self._mux(frame)
        self.count += 1

    def close(self) -> None:
        self._mux(None)
        self.container.close()

    def _mux(self, frame: Any) -> None:
        try:
            self.container.mux(self.stream.encode(frame))
        except self.av.FFmpegError as error:
            if isinstance(error, OSError):  # a full disk, say: for `files.writing`
                raise
            raise InputError(f"{self.path}: could not be written: {_reason(error)}") from error

    def notes(self) -> list[str]:
        odd = any(side % 2 for side in self.size)
        return [f"padded to {self.stream.width}x{self.stream.height}, as H.264 wants even sides"] if odd else []


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
