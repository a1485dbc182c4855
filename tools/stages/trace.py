"""Which anchor is behind a proposal, and which proposal behind a detection, from a Recorder."""

import torch
from torch import Tensor

from network_files import Recorder


def candidates(seen: Recorder, i: int) -> Tensor:
    """The best anchors of all levels of picture i, numbered over the levels: int64 [K]."""
    starts, numbers = 0, []
    for record, anchors in zip(seen["candidates"], seen["rpn"][0]["anchors"], strict=True):
        numbers.append(record["anchor"][i] + starts)
        starts += len(anchors)
    return torch.cat(numbers)


def anchor_of_proposal(seen: Recorder, i: int) -> Tensor:
    """The anchor, numbered over the levels, that each proposal of picture i is decoded from: int64 [P]."""
    record = seen["proposals"][i]
    return candidates(seen, i)[record["good"]][record["keep"]]


def proposal_of_detection(seen: Recorder, i: int) -> Tensor:
    """The proposal that each detection of picture i is decoded from: int64 [D]."""
    record = seen["classes"][i]
    return record["roi"][record["good"]][record["keep"]]
