"""A training pass -> three numbers: an observer of the network's stages that keeps no more than sums."""

from typing import Any

import torch
from torch import Tensor

from network_files.operators.boxes import box_iou
from network_files.recorder import Observer, Stage

REACHED = 0.5  # IoU from which a proposal has found an object


class StepCounts(Observer):
    """The model's recorder for one micro-batch or several; nothing is read from the device before `means`."""

    def __init__(self) -> None:
        self.images, self.objects, self.anchors = 0, 0, 0
        self.rois, self.reached = torch.zeros(()), torch.zeros(())
        self.proposals: list[Tensor] = []  # of the images of a batch, until their objects come

    def __call__(self, stage: str, **values: Any) -> None:
        """Adds what one stage reports."""
        if stage == Stage.PROPOSALS:
            self.proposals.append(values["boxes"][values["keep"]])
        elif stage == Stage.RPN_TARGETS:
            objects, proposals = values["objects"], self.proposals.pop(0)
            self.images += 1
            self.anchors += len(values["positive"])
            self.objects += len(objects)
            if len(objects) and len(proposals):
                best = box_iou(objects.to(proposals.dtype), proposals).amax(1)  # [G]
                self.reached = self.reached.to(best.device) + (best >= REACHED).sum()
        elif stage == Stage.ROI_SAMPLES:
            label = values["label"][values["chosen"]]
            self.rois = self.rois.to(label.device) + (label > 0).sum()

    def means(self) -> dict[str, Tensor | float]:
        """Returns positive anchors and positive RoIs per image, and the share of objects that a proposal reaches.

        The share is left out where there is no object. Tensors stay on the device that computes them.
        """
        images = max(self.images, 1)
        found = {"positive anchors": self.anchors / images, "positive RoIs": self.rois / images}
        return found | ({"proposal recall 0.5": self.reached / self.objects} if self.objects else {})
