"""predict.py with a network in place of the given one that shows in each tile the discs that `slide` has drawn there.

So what reading, joining, writing and drawing cost is measured by itself, and a disc that is lost is lost by them. It is
`python -m benchmarks.large_images.slide --perfect` that runs it. D discs in a tile.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import predict
from benchmarks.harness import resident_mib
from benchmarks.large_images.slide import discs
from network_files import MaskRCNN, create_model
from train_utils.checkpoints.checkpoint import save_checkpoint
from train_utils.cli.command import run_command
from train_utils.data.labels import LabelMap
from train_utils.data.tiles.tiling import Tiling

CELLS = 28  # of a mask, a side
LEAST = 3  # pixels: a disc of which a tile has less is not shown
SCORE = 0.9
NARROW = {"backbone_width": 16, "fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": 16}


class DrawnDiscs:
    """What `MaskRCNN.forward` is replaced by: shows the discs of one tile after another, as `TiledModel` asks.

    before: MiB that the process takes when it has the network and the first tile.
    """

    def __init__(self, side: int, objects: int | None, tile: int) -> None:
        boxes = torch.from_numpy(discs(side, objects)[0]).float()
        boxes[:, 2:] += 1  # Pillow's ellipse has its last pixel
        self.boxes, self.tiles, self.before = boxes, iter(Tiling(tile).boxes((side, side))), 0.0

    def __call__(self, images: list[Tensor], **asked: object) -> list[dict[str, Tensor]]:
        """Returns boxes, labels, scores and mask_probs of the next tile; images: that tile; asked: without effect."""
        self.before = self.before or resident_mib("VmRSS")
        images[0].double().sum()  # a network takes large blocks, too, and frees them
        corner, end = next(self.tiles).float().split(2)
        seen = torch.cat((self.boxes[:, :2].maximum(corner), self.boxes[:, 2:].minimum(end)), 1)
        there = (seen[:, 2:] - seen[:, :2] >= LEAST).all(1)
        seen, own = seen[there], self.boxes[there]  # [D, 4]
        cell = (torch.arange(CELLS) + 0.5) / CELLS
        x, y = (seen[:, a, None] + cell * (seen[:, a + 2] - seen[:, a])[:, None] for a in (0, 1))  # [D, CELLS]
        centre, radius = (own[:, :2] + own[:, 2:]) / 2, (own[:, 2] - own[:, 0]) / 2
        squares = (x - centre[:, :1])[:, None] ** 2 + (y - centre[:, 1:])[:, :, None] ** 2  # [D, CELLS, CELLS]
        inside = squares <= radius[:, None, None] ** 2
        there = inside.flatten(1).any(1)
        labels = torch.ones(int(there.sum()), dtype=torch.int64)
        boxes = (seen - corner.repeat(2))[there]
        return [{"boxes": boxes, "labels": labels, "scores": SCORE * torch.ones(len(labels)),
                 "mask_probs": inside[there].float()}]  # fmt: skip


def write_weights(path: Path) -> None:
    """Writes a checkpoint of a narrow network of one class, for predict.py to open."""
    model, label_map = create_model(2, "resnet18", **NARROW), LabelMap.from_names({1: "disc"})
    content = {"format_version": 1, "model": model.state_dict(), "config": model.config.to_dict()}
    save_checkpoint(path, content | {"label_map": label_map.to_dict(), "args": {}, "epoch": 0, "step": 0})


def main(words: list[str]) -> int:
    """Runs predict.py and prints its memory; returns its exit status.

    words: pixels of the image's side, discs (0: as many as `slide` draws by itself), pixels of a tile's side, where the
    weights are written, and the words of predict.py without these.
    """
    side, objects, tile = map(int, words[:3])
    drawn = DrawnDiscs(side, objects or None, tile)
    MaskRCNN.forward = staticmethod(drawn)
    write_weights(Path(words[3]))
    every = "--tile-empty", "-1"  # tiles are told apart by their order
    sys.argv = ["predict.py", "--weights-path", words[3], *words[4:], *every]
    status = run_command(predict.main)
    more = resident_mib("VmHWM") - drawn.before
    print(f"{drawn.before:.0f} MiB with the first tile, {more:.0f} MiB more at the peak", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
