"""Proposals: against torchvision's RPN where levels overlap, and the limits of the config."""

import pytest
import torch
from torchvision.models.detection import rpn as oracle
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from network_files import MaskRCNNConfig
from network_files.operators.roi_align import FeatureTable
from network_files.rpn import RegionProposalNetwork
from network_files.transform import ImageBatch

CHANNELS, PADDED, SIZES = 16, (128, 192), [(120, 192), (128, 150)]
OVERLAPPING = (32, 36, 40, 44, 48)  # anchors of neighbouring levels are near-duplicates
LIMITS = {
    "rpn_pre_nms_top_n_train": 90,
    "rpn_post_nms_top_n_train": 70,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 50,
}


def torchvision_rpn(config):
    """torchvision's RPN with the numbers of a config."""
    anchors = AnchorGenerator(tuple((s,) for s in config.anchor_sizes), (config.aspect_ratios,) * 5)
    return oracle.RegionProposalNetwork(
        anchors,
        oracle.RPNHead(CHANNELS, len(config.aspect_ratios)),
        config.rpn_fg_iou_thresh,
        config.rpn_bg_iou_thresh,
        config.rpn_batch_size_per_image,
        config.rpn_positive_fraction,
        {"training": config.rpn_pre_nms_top_n_train, "testing": config.rpn_pre_nms_top_n_test},
        {"training": config.rpn_post_nms_top_n_train, "testing": config.rpn_post_nms_top_n_test},
        config.rpn_nms_thresh,
        config.rpn_score_thresh,
    )


def rpn_pair(**options):
    """torchvision's RPN and ours with the same random weights, in float64."""
    config = MaskRCNNConfig(**LIMITS | {"anchor_sizes": OVERLAPPING} | options)
    theirs, ours = torchvision_rpn(config).double(), RegionProposalNetwork(config, CHANNELS, depth=1).double()
    torch.nn.init.normal_(theirs.head.conv[0][0].weight, std=0.1)
    torch.nn.init.normal_(theirs.head.cls_logits.weight, std=0.4)
    torch.nn.init.normal_(theirs.head.bbox_pred.weight, std=0.2)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def propose(theirs, ours, training):
    shapes = [(PADDED[0] // s, PADDED[1] // s) for s in (4, 8, 16, 32, 64)]
    maps = [torch.randn(2, CHANNELS, *shape, dtype=torch.float64) for shape in shapes]
    images = torch.zeros(2, 3, *PADDED, dtype=torch.float64)
    theirs.train(training)
    ours.train(training)
    targets = [{"boxes": torch.zeros(0, 4, dtype=torch.float64)}] * 2
    with torch.no_grad():
        expected, _ = theirs(ImageList(images, SIZES), dict(enumerate(maps)), targets)
        found, losses = ours(ImageBatch(images, SIZES, SIZES), FeatureTable(maps))
    assert losses == {}
    return expected, found.each()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"rpn_score_thresh": 0.7}, {"rpn_nms_thresh": 0.4}])
def test_proposals_equal_torchvision(training, options):
    expected, found = propose(*rpn_pair(**options), training)
    assert all(len(e) for e in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_near_duplicates_of_other_levels_stay():
    _, (proposals, _) = propose(*rpn_pair(rpn_post_nms_top_n_test=1000), False)
    overlap = box_iou(proposals, proposals).fill_diagonal_(0)
    assert overlap.max() > 0.7  # within a level the threshold forbids it


def test_limits():
    for training, most in ((True, 70), (False, 50)):
        _, found = propose(*rpn_pair(), training)
        assert [len(f) for f in found] == [most] * 2
    for (height, width), boxes in zip(SIZES, found, strict=True):
        assert 0 <= boxes.min() and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert (boxes[:, 2:] > boxes[:, :2]).all()
