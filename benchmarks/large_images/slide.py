"""Draws an image of 20,000 x 20,000 pixels, reads it tile by tile, or sends it through predict.py: time, peak memory.

    python -m benchmarks.large_images.slide --form tif                         reading alone: of a tiled BigTIFF
    python -m benchmarks.large_images.slide --form png --weights-path W        predict.py in its place

Memory is what the process takes at its peak above what it took before; of predict.py the whole, as the kernel counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from train_utils.cli.command import run_command
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.data.images.reading import Reading
from train_utils.data.images.windows import open_image

ROOT = Path(__file__).resolve().parents[2]
APART = 400  # pixels from a disc to the next
OVERVIEW = 4000  # pixels a side


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--form", choices=("tif", "png", "jpg"), default="tif")
    parser.add_argument("--side", type=number(int, least=64), default=20_000, help="pixels")
    parser.add_argument("--weights-path", metavar="W", help="send it through predict.py with these weights")
    parser.add_argument("--keep", metavar="FOLDER", help="where it is drawn, if it is not there (default: nowhere)")
    parser.add_argument("--tile", type=number(int, least=32), default=1024, help="pixels of a tile's side")
    parser.add_argument("--detections", type=number(int, least=1), default=100, help="of a tile, at most")
    return parser.parse_args(argv)


def draw(path: Path, side: int) -> None:
    """Draws a disc of 30 to 80 pixels in each square of APART pixels; a TIFF is tiled, 512 x 512, and compressed."""
    image, rng = Image.new("RGB", (side, side), (40, 40, 40)), np.random.default_rng(0)
    pen = ImageDraw.Draw(image)
    for y in range(0, side, APART):
        for x in range(0, side, APART):
            radius, left, top = int(rng.integers(15, 40)), x + int(rng.integers(0, 300)), y + int(rng.integers(0, 300))
            place = (left, top, left + 2 * radius, top + 2 * radius)
            pen.ellipse(place, fill=tuple(rng.integers(90, 255, 3).tolist()))
    if path.suffix == ".tif":
        import tifffile

        how = {"tile": (512, 512), "compression": "zlib", "photometric": "rgb", "bigtiff": True}
        tifffile.imwrite(path, np.asarray(image), **how)
    else:
        image.save(path, **({"compress_level": 1} if path.suffix == ".png" else {"quality": 90}))


def peak() -> int:
    """Returns MiB that the process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def read_all(path: Path, tile: int) -> None:
    """Reads every tile, then the overview, and prints time and memory."""
    before, start = peak(), time.process_time()
    image = open_image(path, Reading(by_windows=True))
    _, height, width = image.shape
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            image[:, y : y + tile, x : x + tile].sum()
    print(f"{path.name}: every tile of {tile}: {time.process_time() - start:.1f} s, {peak() - before} MiB", flush=True)
    if hasattr(image, "overview"):
        start = time.process_time()
        image.overview(OVERVIEW)
        print(f"an overview of {OVERVIEW}: {time.process_time() - start:.1f} s more, {peak() - before} MiB", flush=True)


def predict(path: Path, weights: str, words: list[str], folder: Path) -> int:
    """Runs predict.py on it and prints what it took; returns its exit status."""
    command = [sys.executable, str(ROOT / "predict.py"), "--weights-path", weights, "--img-path", str(path)]
    process = subprocess.Popen([*command, "--output-dir", str(folder), *words], cwd=ROOT)
    _, wait_status, used = os.wait4(process.pid, 0)  # of this process alone: drawing took more
    status = os.waitstatus_to_exitcode(wait_status)
    seconds = used.ru_utime + used.ru_stime
    print(f"predict.py: exit status {status}, {seconds:.1f} s of CPU time, peak {used.ru_maxrss >> 10} MiB", flush=True)
    return status


def main(argv: list[str] | None = None) -> int:
    """Runs it; returns predict.py's exit status, 0 without."""
    args = parse_args(argv)
    words = ["--tile", str(args.tile), "--box-detections-per-img", str(args.detections), "--device", "cpu"]
    with tempfile.TemporaryDirectory() as room:
        folder = Path(args.keep or room)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"slide{args.side}.{args.form}"
        if not path.exists():  # in a process of its own: its memory does not count
            code = "import sys; from pathlib import Path; from benchmarks.large_images.slide import draw; "
            code += "draw(Path(sys.argv[1]), int(sys.argv[2]))"
            subprocess.run([sys.executable, "-c", code, str(path), str(args.side)], cwd=ROOT, check=True)
        if args.weights_path:
            return predict(path.resolve(), str(Path(args.weights_path).resolve()), words, folder.resolve())
        read_all(path, args.tile)
        return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
