"""Sends one image through the network, in evaluation, and keeps what goes in, what the recorder saw, what comes out.

G objects (crowd regions apart), A anchors over all levels, P proposals, D detections.
"""

import bisect
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from network_files import MaskRCNN, MaskRCNNConfig, Recorder
from network_files.operators.boxes import box_iou
from network_files.recorder import Stage
from tools.stages.trace import anchor_of_proposal, proposal_of_detection
from train_utils.data.images.shown import shown


@dataclass
class View:
    """One image's way through the network.

    before: (image uint8 [3, H, W], target) as loaded; image, target: the network's input, after augmentation; the
    target is None for an image alone. mini: cells a side of mini masks.
    """

    config: MaskRCNNConfig
    name_of: Callable[[int], str]
    before: tuple[Tensor, dict | None]
    image: Tensor
    target: dict | None
    seen: Recorder
    losses: dict[str, float]
    detections: dict[str, Tensor]
    mini: int = 56

    @property
    def size(self) -> tuple[int, int]:
        """The (h, w) of the resized image."""
        return self.seen[Stage.BATCH][0]["sizes"][0]

    @property
    def padded(self) -> Tensor:
        """The batch's image, its normalisation undone: uint8 [3, ph, pw]."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.config.image_mean, self.config.image_std))
        image = self.seen[Stage.BATCH][0]["images"][0].float()
        if self.config.channels != 3 or self.config.value_range is not None:
            return shown(image * std + mean)
        return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def resized(self) -> Tensor:
        """The resized image, uint8 [3, h, w]: the frame of anchors, proposals and RoIs."""
        return self.padded[:, : self.size[0], : self.size[1]]

    @property
    def objects(self) -> Tensor:
        """The boxes of the objects in the resized image, [G, 4]."""
        return self.seen[Stage.RPN_TARGETS][0]["objects"] if self.target is not None else torch.zeros(0, 4)

    @staticmethod
    def own(target: dict) -> Tensor:
        """Returns which of a target's annotations are objects, not crowd regions: bool [N]."""
        crowd = target.get("iscrowd")
        return torch.ones(len(target["labels"]), dtype=torch.bool) if crowd is None else crowd == 0

    @property
    def anchors(self) -> Tensor:
        """The anchors of all levels, [A, 4]."""
        return torch.cat(self.seen[Stage.RPN][0]["anchors"]).float()

    @property
    def proposals(self) -> Tensor:
        """The proposals by falling objectness, [P, 4]."""
        record = self.seen[Stage.PROPOSALS][0]
        return record["boxes"][record["keep"]].float()

    @property
    def found(self) -> Tensor:
        """The boxes of the detections in the resized image, [D, 4]."""
        record = self.seen[Stage.CLASSES][0]
        return record["boxes"][record["keep"]].float()

    def path(self, detection: int) -> tuple[int, int]:
        """Returns the anchor, numbered over all levels, and the proposal behind a detection."""
        proposal = int(proposal_of_detection(self.seen, 0)[detection])
        return int(anchor_of_proposal(self.seen, 0)[proposal]), proposal

    def place_of(self, anchor: int) -> tuple[int, int]:
        """Returns the level (0: P2) of an anchor that is numbered over all levels, and its number within that level."""
        starts = [0, *itertools.accumulate(map(len, self.seen[Stage.RPN][0]["anchors"]))]
        level = bisect.bisect(starts, anchor) - 1
        return level, anchor - starts[level]

    def name(self, label: int | Tensor) -> str:
        """Returns a label's name."""
        return self.name_of(int(label))

    def title(self, detection: int) -> str:
        """Returns name and score of a detection."""
        return f"{self.name(self.detections['labels'][detection])} {self.detections['scores'][detection]:.2f}"

    def loss_facts(self, *losses: str) -> list[tuple[str, str]]:
        """Returns these losses and their values."""
        return [(name, f"{self.losses[name]:.4f}") for name in losses]


@torch.inference_mode()
def look(
    model: MaskRCNN,
    image: Tensor,
    target: dict | None,
    name_of: Callable[[int], str],
    before: tuple[Tensor, dict | None] | None = None,
    mini: int | None = None,
) -> View:
    """Sends an image (uint8 [3, H, W]) and its target (masks: CroppedMasks), if it has one, through the model once.

    mini: cells a side that training keeps masks in; None: every pixel (a comparison then takes 56).
    """
    device, seen = next(model.parameters()).device, Recorder()
    training, given = model.training, None
    if target is not None:
        moved = {**target, "masks": target["masks"].limited(mini)} if mini else target
        given = [{key: value.to(device) if hasattr(value, "to") else value for key, value in moved.items()}]
    result = model.eval()([image.to(device)], given, paste_masks=False, recorder=seen)
    model.train(training)
    losses, (found,) = result if given else ({}, result)
    losses = {name: float(value) for name, value in losses.items()}
    found = {key: value.cpu() for key, value in found.items()}
    return View(model.config, name_of, before or (image, target), image, target, seen, losses, found, mini or 56)


def best_overlap(objects: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest overlap (0..1) of each object [G, 4] with a box [B, 4], and its box (-1: none): [G] each."""
    iou, index = torch.zeros(len(objects)), torch.full((len(objects),), -1)
    for i, some in enumerate(objects if len(boxes) else ()):  # one by one: all at once may take gigabytes
        iou[i], index[i] = box_iou(some[None].float(), boxes)[0].max(0)
    return iou, index
