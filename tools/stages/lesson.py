"""Lists the stages in their order: what each is, in words, where it is in the code, and in which paper."""

from collections.abc import Callable
from typing import NamedTuple

from backbone import Backbone
from backbone.feature_pyramid_network import FeaturePyramidNetwork
from network_files import losses, matching
from network_files.anchors import AnchorGrid, cell_anchors
from network_files.heads.detections import best_boxes
from network_files.heads.mask_head import MaskPredictor
from network_files.heads.sampling import sample_rois
from network_files.mask_rcnn import MaskRCNN
from network_files.operators import nms, roi_align
from network_files.operators.boxes import BoxCoder
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_targets, paste_masks
from network_files.roi_heads import RoIHeads
from network_files.rpn import RegionProposalNetwork, RPNHead
from network_files.transform import Transform
from tools.stages import heads, inputs, masks, regions
from tools.stages.stage import Shown
from tools.stages.view import View
from train_utils.data.loaders import sample_rng
from transforms import build_augment

PAPERS = {
    "Mask R-CNN": "https://arxiv.org/abs/1703.06870",
    "Faster R-CNN": "https://arxiv.org/abs/1506.01497",
    "FPN": "https://arxiv.org/abs/1612.03144",
}


class Lesson(NamedTuple):
    """One stage.

    show: makes its images and numbers; papers: (of PAPERS, section); code: functions; text: may name fields of the
    config in braces; empty: the text where there is no image to show; alone: the text for an image without a target,
    where it is another.
    """

    name: str
    heading: str
    show: Callable[[View], Shown]
    papers: tuple[tuple[str, str], ...]
    code: tuple
    text: str
    needs_target: bool = False
    empty: str = ""
    alone: str = ""

    def text_for(self, view: View) -> str:
        """Returns the text with the config's numbers."""
        config, text = view.config, self.text if view.target is not None else self.alone or self.text
        return " ".join(text.split()).format(**vars(config), mini=view.mini, cells=2 * config.mask_roi_size)


LESSONS = (
    Lesson(
        "sample",
        "The sample",
        inputs.sample,
        (("Mask R-CNN", "3.1"),),
        (build_augment, sample_rng, CroppedMasks),
        """
        An image and its target: boxes (x1 y1 x2 y2 in pixels), labels, and masks, each kept as the crop inside its
        own box. Augmentation changes image and target together. Its random numbers are a function of seed, epoch
        and index, so that this sample can be drawn again at any time.""",
        alone="""
        The image as it was read, red, green and blue from 0 to 255: all that the network is given.""",
    ),
    Lesson(
        "batch",
        "The resized, padded batch",
        inputs.batch,
        (("Mask R-CNN", "3.1"),),
        (Transform.batch,),
        """
        The image is normalised (minus ImageNet's mean colour, by its standard deviation), resized, and put into
        the left upper corner of a batch whose sides are multiples of {size_divisible}. Padding is zero, which
        stands for the mean colour. From here to the last stage coordinates are pixels of the resized image.""",
    ),
    Lesson(
        "feature_maps",
        "Feature maps of each level",
        inputs.feature_maps,
        (("FPN", "3"), ("Mask R-CNN", "3, Network Architecture")),
        (Backbone.forward, FeaturePyramidNetwork.forward),
        """
        The body ({backbone}) turns pixels into maps at strides 4, 8, 16 and 32. The FPN adds to each map what the
        coarser one knows, so that every level has {fpn_channels} channels, fine detail and a wide view. P6, every
        other cell of P5, serves the RPN alone. Light cells have long vectors; each map is scaled by itself.""",
    ),
    Lesson(
        "anchors",
        "Anchors",
        inputs.anchors,
        (("Faster R-CNN", "3.1.1"), ("FPN", "4.1")),
        (AnchorGrid.__call__, cell_anchors),
        """
        An anchor is a box that stands for a place, a size and a shape: each cell of each level has one per aspect
        ratio. The RPN will say of every anchor whether an object is there, and how the box should move. An object
        that no anchor overlaps by {rpn_fg_iou_thresh} has only its best anchor to be learnt from: where many are
        out of reach, --anchor-sizes or --min-size do not fit the data.""",
    ),
    Lesson(
        "rpn_targets",
        "RPN targets",
        regions.rpn_targets,
        (("Faster R-CNN", "3.1.2 and 3.1.3"), ("FPN", "4.1")),
        (RegionProposalNetwork.match, matching.match, matching.sample_balanced, losses.rpn_losses),
        """
        An anchor is positive where it overlaps an object by {rpn_fg_iou_thresh} or more, or overlaps it more than
        all other anchors do (the low-quality rule). It is negative where it overlaps every object by less than
        {rpn_bg_iou_thresh}. Between, and inside a crowd region, it is ignored. Nearly all are negative, so a
        balanced part is drawn, and only that has losses: is there an object, and, of positives, how does the anchor
        move to it?""",
        needs_target=True,
    ),
    Lesson(
        "objectness",
        "RPN objectness",
        regions.objectness,
        (("Faster R-CNN", "3.1"), ("FPN", "4.1")),
        (RPNHead.forward,),
        """
        One small head runs over all levels: 3x3 convolution, then an objectness logit and four box deltas for each
        anchor of a cell. A cell is drawn around its left upper corner, on which its anchors are centred; where it is
        light, the best of them is sure to be on an object. Each level answers for objects of its anchors' size.""",
    ),
    Lesson(
        "proposals",
        "Proposals before and after NMS",
        regions.proposals,
        (("Faster R-CNN", "3.1 and 3.3"),),
        (RegionProposalNetwork.propose, BoxCoder.decode, nms.batched_nms),
        """
        The best anchors of each level are moved by their deltas and clipped to the image. Many then lie on the
        same object: non-maximum suppression (NMS) drops every box that overlaps a better one of its level by more
        than {rpn_nms_thresh}. Of what is left the best {rpn_post_nms_top_n_test:,} stay, and they are all that the
        second half will see: an object without a proposal cannot be found any more.""",
    ),
    Lesson(
        "roi_levels",
        "The level that each RoI takes",
        heads.roi_levels,
        (("FPN", "4.2, equation 1"), ("Mask R-CNN", "3, RoIAlign")),
        (roi_align.roi_levels, RoIHeads.pool, roi_align.roi_align),
        """
        A proposal is now a region of interest (RoI). Small ones read the fine P2, large ones the coarse P5: level 4
        + log2(side / 224), rounded down. RoIAlign then samples the level at exact places, without rounding to
        cells, and gives every RoI {box_roi_size} x {box_roi_size} cells whatever its size.""",
    ),
    Lesson(
        "box_targets",
        "Box targets",
        heads.box_targets,
        (("Mask R-CNN", "3.1"), ("Faster R-CNN", "3.1.2, equation 2")),
        (sample_rois, BoxCoder.encode, losses.box_losses),
        """
        A RoI that overlaps an object by {box_fg_iou_thresh} or more is positive: it shall become that object's
        class and box. All others are background, and again a balanced part is drawn. A positive RoI's four numbers
        say how far the object's centre is, in units of the RoI's sides, and how much wider and higher it is, as a
        logarithm: the moves that the arrows show.""",
        needs_target=True,
    ),
    Lesson(
        "refinement",
        "Refined boxes: anchor, proposal, detection",
        heads.refinement,
        (("Faster R-CNN", "3.1.2, equation 2"), ("Mask R-CNN", "3.1")),
        (BoxCoder.decode, best_boxes),
        """
        A detection's box has moved twice: the RPN moved an anchor (yellow) to a proposal (blue), and the box head,
        which saw the RoI's features, moved that to the detection (green). For every RoI it gives each class a score
        and a move of its own; NMS then runs within each class. The detections of the highest scores are shown.""",
        empty="Nothing was found in this image, so there is no path to show.",
    ),
    Lesson(
        "mask_targets",
        "Mask targets",
        masks.mask_targets,
        (("Mask R-CNN", "3, Mask Representation, and 3.1"),),
        (mask_targets, RoIHeads.mask_branch_loss, losses.mask_loss, CroppedMasks.limited),
        """
        The mask branch learns from positive RoIs alone. Its target is the object's mask inside the RoI, averaged
        into {cells} x {cells} cells: what the RoI misses of the object, the target misses too. Mini masks (a flag of
        training) keep at most {mini} x {mini} cells of each object's box: less memory, nearly the same target.""",
        needs_target=True,
        empty="No sampled RoI is positive here, so there is no target.",
    ),
    Lesson(
        "masks",
        "Mask probabilities and pasted masks",
        masks.masks,
        (("Mask R-CNN", "3, Mask Representation, and 3.1"),),
        (RoIHeads.detect, MaskPredictor.forward, paste_masks),
        """
        For each detection the mask branch looks at its final box, with {mask_roi_size} x {mask_roi_size} cells, and
        gives each of {cells} x {cells} a probability, for the detection's own class: classes do not compete here.
        These are enlarged to the box in the original image; pixels above 0.5 make the mask.""",
        empty="Nothing was found in this image, so there is no mask.",
    ),
    Lesson(
        "detections",
        "Detections",
        heads.detections,
        (("Mask R-CNN", "3.1"),),
        (MaskRCNN.forward, MaskRCNN.to_original),
        """
        What model(images) returns: boxes in pixels of the original image, labels, scores and masks; where the image
        is of a data set, the ground truth is shown beside them.""",
    ),
)


def lessons_for(view: View) -> list[Lesson]:
    """Returns the lessons that the image has what they need for."""
    return [lesson for lesson in LESSONS if view.target is not None or not lesson.needs_target]
