"""Finds the anchor of a proposal and the proposal of a detection, from a Recorder, and a RoI's points."""

import torch
from torch import Tensor

from network_files import Recorder
from network_files.operators.boxes import HALF_PIXEL
from network_files.recorder import Stage


def candidates(seen: Recorder, i: int) -> Tensor:
    """Returns the best anchors of all levels of image i, numbered over the levels: int64 [K]."""
    starts, numbers = 0, []
    for record, anchors in zip(seen[Stage.CANDIDATES], seen[Stage.RPN][0]["anchors"], strict=True):
        numbers.append(record["anchor"][i] + starts)
        starts += len(anchors)
    return torch.cat(numbers)


def anchor_of_proposal(seen: Recorder, i: int) -> Tensor:
    """Returns the anchor, numbered over the levels, that each proposal of image i is decoded from: int64 [P]."""
    record = seen[Stage.PROPOSALS][i]
    return candidates(seen, i)[record["good"]][record["keep"]]


def proposal_of_detection(seen: Recorder, i: int) -> Tensor:
    """Returns the proposal that each detection of image i is decoded from: int64 [D]."""
    record = seen[Stage.CLASSES][i]
    return record["roi"][record["good"]][record["keep"]]


def roi_align_points(roi: Tensor, stride: int, size: int, ratio: int, geometry: str) -> tuple[Tensor, Tensor]:
    """Returns the columns and rows, in pixels, at which RoIAlign reads a level of this stride for one RoI [4].

    They are float [size * ratio] each: size x size bins with ratio x ratio points in each bin.
    """
    sides = roi[2:] - roi[:2]
    sides = sides.clamp(min=stride) if geometry != HALF_PIXEL else sides  # a cell at least
    steps = (torch.arange(size * ratio) + 0.5) / (size * ratio)
    return roi[0] + steps * sides[0], roi[1] + steps * sides[1]
