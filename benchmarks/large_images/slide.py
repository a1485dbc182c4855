"""Draws an image of 20,000 x 20,000 pixels, reads it tile by tile, or sends it through predict.py: time, peak memory.

    python -m benchmarks.large_images.slide --form tif                         reading alone: of a tiled BigTIFF
    python -m benchmarks.large_images.slide --form png --weights-path W        predict.py in its place
    python -m benchmarks.large_images.slide --objects 50000 --weights-path save_weights      of many objects
    python -m benchmarks.large_images.slide --objects 50000 --perfect          of many, all of which the network shows

Memory is what the process takes at its peak above what it took before; of predict.py the whole, as the kernel counted,
and with --perfect also what it took with the network and the first tile, which the rest is above.
A disc is found where a detection's box meets its own by an IoU of 0.5.
"""

from __future__ import annotations

import argparse
import json
import math
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
from train_utils.io.plain_text import counted

ROOT = Path(__file__).resolve().parents[2]
APART = 400  # pixels from a disc to the next, unless --objects says how many there are
RADII, OFFSET = (15, 40), 300  # pixels, where there is room: of discs, and from a square's corner to its disc
MET = 0.5  # IoU of boxes
OVERVIEW = 4000  # pixels a side
ALL = 10_000  # detections of a tile, more than it has discs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--form", choices=("tif", "png", "jpg"), default="tif")
    parser.add_argument("--side", type=number(int, least=64), default=20_000, help="pixels")
    parser.add_argument("--objects", type=number(int, least=1), help="discs (default: one each 400 x 400 pixels)")
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--weights-path", metavar="W", help="send it through predict.py with these weights")
    network.add_argument("--perfect", action="store_true", help="likewise, with a network that shows what is drawn")
    parser.add_argument("--keep", metavar="FOLDER", help="where it is drawn, if it is not there (default: nowhere)")
    parser.add_argument("--tile", type=number(int, least=32), default=1024, help="pixels of a tile's side")
    parser.add_argument("--detections", type=number(int, least=1), default=100, help="of a tile, at most")
    return parser.parse_args(argv)


def squares(side: int, objects: int | None) -> tuple[int, int]:
    """Returns how many squares with a disc each an image has along a side, and their pixels a side."""
    across = math.ceil(side / APART if objects is None else math.sqrt(objects))
    return across, APART if objects is None else side // across


def discs(side: int, objects: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes x1 y1 x2 y2 int64 [G, 4] and colours [G, 3] of the discs, one in each square, row by row."""
    rng, (across, apart) = np.random.default_rng(0), squares(side, objects)
    most = min(RADII[1], apart * 2 // 5)
    least, offset = min(RADII[0], most // 2), min(OFFSET, apart - 2 * most)
    boxes, colours = [], []
    for place in range(objects or across**2):
        y, x = (apart * along for along in divmod(place, across))
        radius, left, top = int(rng.integers(least, most)), x + int(rng.integers(offset)), y + int(rng.integers(offset))
        boxes.append([left, top, left + 2 * radius, top + 2 * radius])
        colours.append(rng.integers(90, 255, 3))
    return np.array(boxes), np.array(colours)


def draw(path: Path, side: int, objects: int | None) -> None:
    """Draws discs, of 30 to 80 pixels where there is room; a TIFF is tiled, 512 x 512, and compressed."""
    image = Image.new("RGB", (side, side), (40, 40, 40))
    pen = ImageDraw.Draw(image)
    for box, colour in zip(*(values.tolist() for values in discs(side, objects)), strict=True):
        pen.ellipse(box, fill=tuple(colour))
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


def predict(path: Path, program: list[str], words: list[str], folder: Path) -> int:
    """Runs predict.py, as `program` calls it, on an image and prints what it took; returns its exit status."""
    command = [sys.executable, *program, "--img-path", str(path), "--output-dir", str(folder), *words]
    process = subprocess.Popen(command, cwd=ROOT)
    _, wait_status, used = os.wait4(process.pid, 0)  # of this process alone: drawing took more
    status = os.waitstatus_to_exitcode(wait_status)
    seconds = used.ru_utime + used.ru_stime
    print(f"predict.py: exit status {status}, {seconds:.1f} s of CPU time, peak {used.ru_maxrss >> 10} MiB", flush=True)
    return status


def found(results: list[dict], side: int, objects: int | None) -> int:
    """Returns how many discs are found; a detection is compared with the disc of the square that its centre lies in."""
    boxes, (across, apart) = discs(side, objects)[0], squares(side, objects)
    own = np.array([result["bbox"] for result in results]).reshape(-1, 4)
    own[:, 2:] += own[:, :2]
    x, y = ((own[:, :2] + own[:, 2:]) / 2 // apart).astype(np.int64).T
    there = (x < across) & (y < across) & (y * across + x < len(boxes))
    own, place = own[there], (y * across + x)[there]
    both = np.minimum(own[:, 2:], boxes[place, 2:]) - np.maximum(own[:, :2], boxes[place, :2])
    shared = both.clip(min=0).prod(1)
    areas = sum((b[:, 2:] - b[:, :2]).prod(1) for b in (own, boxes[place]))
    return len(np.unique(place[shared >= MET * (areas - shared)]))


def main(argv: list[str] | None = None) -> int:
    """Runs it; returns predict.py's exit status, 0 without."""
    args = parse_args(argv)
    most = ALL if args.perfect else args.detections
    words = ["--tile", str(args.tile), "--box-detections-per-img", str(most), "--device", "cpu"]
    with tempfile.TemporaryDirectory() as room:
        folder = Path(args.keep or room)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"slide{args.side}{f'_{args.objects}' if args.objects else ''}.{args.form}"
        if not path.exists():  # in a process of its own: its memory does not count
            code = "import sys; from pathlib import Path; from benchmarks.large_images.slide import draw; "
            code += f"draw(Path(sys.argv[1]), {args.side}, {args.objects})"
            subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True)
        program = []
        if args.perfect:
            about = [str(args.side), str(args.objects or 0), str(args.tile), str(folder.resolve() / "perfect.pth")]
            program = ["-m", "benchmarks.large_images.perfect", *about]
        elif args.weights_path:
            program = [str(ROOT / "predict.py"), "--weights-path", str(Path(args.weights_path).resolve())]
        if program:
            status = predict(path.resolve(), program, words, folder.resolve())
            if status == 0:
                results = json.loads((folder / "test_result.json").read_text())
                met, count = found(results, args.side, args.objects), len(discs(args.side, args.objects)[0])
                print(f"{counted(len(results), 'detection')}, {met:,} of {counted(count, 'disc')} found")
            return status
        read_all(path, args.tile)
        return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
