"""Crops of masks -> run-length codes, a hundredth of their memory: detections of a large image, until they are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from network_files.operators.cropped_masks import CroppedMasks


class CompactMasks(CroppedMasks):
    """N binary masks as CroppedMasks, whose crops are decoded one by one, where they are asked for.

    counts: COCO's compressed RLE of each crop, in its own box [h, w]; empty for a mask without pixels.
    """

    def __init__(self, counts: list[bytes], boxes: Tensor, size: tuple[int, int]) -> None:
        self.counts, self.boxes, self.size, self.limit = counts, boxes, (int(size[0]), int(size[1])), None

    @staticmethod
    def of(masks: CroppedMasks) -> CompactMasks:
        """Returns the masks, on the CPU, in this form."""
        if isinstance(masks, CompactMasks):
            return masks
        masks = masks.to("cpu")
        return CompactMasks([code_of(crop.numpy()) for crop in masks.crops()], masks.boxes, masks.size)

    @property
    def pixels(self) -> Tensor:
        """All crops decoded, one after another, uint8 [T]."""
        return torch.cat([torch.zeros(0, dtype=torch.uint8), *(crop.reshape(-1) for crop in self.crops())])

    def crop(self, i: int) -> Tensor:
        """Decodes the i-th crop, uint8 [h, w]."""
        x1, y1, x2, y2 = self.boxes[i].tolist()
        if not self.counts[i]:
            return torch.zeros(0, 0, dtype=torch.uint8)
        crop = coco_mask.decode({"size": [y2 - y1, x2 - x1], "counts": self.counts[i]})
        return torch.from_numpy(np.ascontiguousarray(crop))

    def crops(self) -> Sequence[Tensor]:
        """Returns every crop, which is decoded each time it is looked at."""
        return _Crops(self)

    def _kept(self) -> Sequence[Tensor]:
        return _Crops(self)

    def __getitem__(self, index: Tensor | slice | list[int]) -> CompactMasks:
        """Returns the masks at these indices (or where a bool tensor is set), in that order."""
        chosen = torch.arange(len(self))[index].tolist()
        return CompactMasks([self.counts[i] for i in chosen], self.boxes[chosen], self.size)

    def __repr__(self) -> str:
        return f"CompactMasks({len(self)} of {self.size[0]}x{self.size[1]}, {sum(map(len, self.counts))} bytes)"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CroppedMasks:
        """Returns the masks on a device; elsewhere than on the CPU decoded."""
        if torch.device(device).type == "cpu":
            return self
        return CroppedMasks(self.pixels, self.boxes, self.size).to(device, non_blocking)


class _Crops(Sequence):
    """The crops of CompactMasks as a list of tensors that does not hold them."""

    def __init__(self, masks: CompactMasks) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, i: int) -> Tensor:
        return self.masks.crop(range(len(self))[i])  # IndexError ends a loop


def code_of(crop: np.ndarray) -> bytes:
    """Returns the compressed RLE of a crop, uint8 [h, w]; of one without pixels nothing."""
    return coco_mask.encode(np.asfortranarray(crop))["counts"] if crop.any() else b""
