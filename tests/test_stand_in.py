"""Code written for torchvision's model: its attributes act, its predictors fit in, its fine-tuning loop runs."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.transforms import v2

from network_files import MaskRCNNConfig, create_model
from tests.tiny_model import FIELDS, tiny, tiny_model

SIZE = (64, 64)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def target():
    masks = torch.zeros(1, *SIZE, dtype=torch.uint8)
    masks[0, 5:40, 5:30] = 1
    return {"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([1]), "masks": masks, "sample_seed": 1}


def found(model, image):
    with torch.no_grad():
        return model.eval()([image])[0]


@pytest.mark.parametrize(
    ("part", "name", "value", "field"),
    [
        ("roi_heads", "score_thresh", 0.6, "box_score_thresh"),
        ("roi_heads", "nms_thresh", 0.1, "box_nms_thresh"),
        ("roi_heads", "detections_per_img", 3, "box_detections_per_img"),
        ("rpn", "nms_thresh", 0.01, "rpn_nms_thresh"),
        ("rpn", "score_thresh", 0.52, "rpn_score_thresh"),
        ("rpn", "_pre_nms_top_n", {"training": 9, "testing": 3}, "rpn_pre_nms_top_n_test"),
        ("rpn", "_post_nms_top_n", {"training": 9, "testing": 3}, "rpn_post_nms_top_n_test"),
        ("transform", "min_size", (32,), "min_size"),
        ("transform", "max_size", 64, "max_size"),
        ("transform", "image_mean", (0.1, 0.2, 0.3), "image_mean"),
        ("transform", "image_std", [1.0, 1.0, 0.5], "image_std"),
        ("transform", "size_divisible", 96, "size_divisible"),
        ("transform", "fixed_size", (32, 32), "fixed_size"),
    ],
)
def test_a_number_that_is_set_acts_as_if_the_model_were_made_with_it(model, image, part, name, value, field):
    before = found(model, image)
    setattr(getattr(model, part), name, value)
    assert getattr(getattr(model, part), name) == (tuple(value) if isinstance(value, list) else value)
    given = value["testing"] if isinstance(value, dict) else value
    other = create_model(**{**tiny_model().config.to_dict(), field: given})
    assert getattr(model.config, field) == getattr(other.config, field)  # loaders and checkpoints read it there
    other.load_state_dict(model.state_dict())
    after, expected = found(model, image), found(other, image)
    assert all(torch.equal(after[key], value) for key, value in expected.items())
    if name != "max_size":  # of a square image it has no say
        assert len(after["scores"]) != len(before["scores"]) or not torch.equal(after["scores"], before["scores"])


def test_a_threshold_that_no_score_reaches_is_taken(model, image):
    model.roi_heads.score_thresh = 2.0  # as torchvision takes it
    assert len(found(model, image)["scores"]) == 0 and model.config.box_score_thresh == 1.0


def test_an_item_of_the_rpns_numbers_acts(model):
    model.rpn._pre_nms_top_n["testing"] = 7
    assert model.config.rpn_pre_nms_top_n_test == 7 and model.rpn._pre_nms_top_n["testing"] == 7


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("roi_heads.box_roi_pool", "RoIHeads.box_roi_pool would have no effect: give box_roi_size"),
        ("roi_heads.score_treshold", "what can be set is score_thresh, nms_thresh, detections_per_img"),
        ("rpn.anchor_generator", "give anchor_sizes and aspect_ratios to create_model"),
        ("transform.mean", "what can be set is min_size, max_size, fixed_size, image_mean, image_std, size_divisible"),
        ("score_thresh", "MaskRCNN.score_thresh would have no effect: set rpn.score_thresh or roi_heads.score_thresh"),
        ("box_score_thresh", "MaskRCNN.box_score_thresh would have no effect: give box_score_thresh to create_model"),
    ],
)
def test_an_attribute_that_means_nothing_raises(model, place, said):
    *parts, name = place.split(".")
    owner = getattr(model, parts[0]) if parts else model
    with pytest.raises(AttributeError, match=said):
        setattr(owner, name, 1)
    with pytest.raises(ValueError, match="box_nms_thresh: 2.0 is not a number between 0 and 1"):
        model.roi_heads.nms_thresh = 2.0
    model.note = "of the user's"


def test_the_fine_tuning_tutorial(model, image, target):
    """Of pytorch.org: both predictors are replaced, then images and targets of tv_tensors go through v2 transforms."""
    features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(features, 2)
    hidden = model.roi_heads.mask_predictor.conv5_mask.in_channels
    model.roi_heads.mask_predictor = MaskRCNNPredictor(hidden, 16, 2)
    assert model.config.num_classes == 2
    transform = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()])
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=SIZE)
    wrapped = {"boxes": boxes, "labels": target["labels"], "masks": tv_tensors.Mask(target["masks"]), "image_id": 1}
    image = tv_tensors.Image((image * 255).to(torch.uint8))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.005, momentum=0.9)
    losses = []
    for _ in range(4):
        images, targets = zip(*[transform(image, wrapped)] * 2, strict=True)
        loss = sum(model.train()(list(images), [{**t, "sample_seed": 3} for t in targets]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.roi_heads.mask_predictor.parameters())
    model.roi_heads.score_thresh = 0.0
    detections = found(model, image)
    assert detections["labels"].unique().tolist() == [1] and detections["masks"].shape[1:] == (1, *SIZE)
    saved = tiny(2, backbone_width=16, norm="batch")
    saved.load_state_dict(
        model.state_dict()
    )  # under the names and in the shapes of a model that was made for 2 classes


def test_replaced_predictors_give_the_same_numbers(model, image, target):
    """torchvision's modules with our weights: the same losses, gradients and detections."""
    other = copy.deepcopy(model)
    box, mask = FastRCNNPredictor(32, 4), MaskRCNNPredictor(16, 16, 4)
    box.load_state_dict(model.roi_heads.box_predictor.state_dict())
    mask.load_state_dict(model.roi_heads.mask_predictor.state_dict())
    other.roi_heads.box_predictor, other.roi_heads.mask_predictor = box, mask
    one, two = (m.train()([image], [target]) for m in (model, other))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value)
    for losses in (one, two):
        sum(losses.values()).backward()
    for key in ("conv5_mask.weight", "mask_fcn_logits.weight"):
        ours, theirs = (m.roi_heads.mask_predictor.get_parameter(key).grad for m in (model, other))
        torch.testing.assert_close(theirs, ours)
    one, two = found(model, image), found(other, image)
    assert all(torch.allclose(two[key].float(), value.float(), atol=1e-5) for key, value in one.items())


class Other(nn.Module):
    """A box predictor of one's own; what: of [K, width], how many numbers for each class."""

    def __init__(self, classes, numbers=4):
        super().__init__()
        self.layer, self.classes = nn.Linear(32, classes * (1 + numbers)), classes

    def forward(self, x):
        return self.layer(x).tensor_split([self.classes], 1)


def test_a_predictor_of_ones_own(model, image):
    model.roi_heads.box_predictor = Other(3)
    assert model.config.num_classes == 3
    with pytest.raises(
        ValueError, match="mask_predictor gives masks of 4 classes, .28, 28. cells: it must be 3 classes"
    ):
        found(model, image)
    with pytest.raises(ValueError, match=r"box_predictor must turn \[K, 32\] into .*: it gives \[2, 3\] and \[2, 6\]"):
        model.roi_heads.box_predictor = Other(3, numbers=2)
    with pytest.raises(ValueError, match=r"box_predictor must turn \[K, 32\]"):
        model.roi_heads.box_predictor = nn.Linear(7, 7)


def test_arguments_in_torchvisions_forms():
    generator = AnchorGenerator(((8,), (16,), (32,), (48,), (64,)), ((0.5, 1.0, 2.0),) * 5)
    forms = (
        {"anchor_sizes": generator.sizes, "aspect_ratios": generator.aspect_ratios},
        {"rpn_anchor_generator": generator},
    )
    for form in forms:
        config = create_model(2, **{**FIELDS, "min_size": 64, **form}).config
        assert config.anchor_sizes == (8, 16, 32, 48, 64) and config.aspect_ratios == (0.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="anchor_sizes .*: give one size for each level"):
        MaskRCNNConfig(anchor_sizes=((8, 9),) * 5)
    with pytest.raises(ValueError, match="aspect_ratios .*: give the same ratios for every level"):
        MaskRCNNConfig(aspect_ratios=((1.0,), (2.0,), (1.0,), (1.0,), (1.0,)))


def test_a_copy_has_a_config_of_its_own(model, image):
    expected = found(model, image)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(found(twin, image)[key], value) for key, value in expected.items())
        twin.roi_heads.detections_per_img = 1
        assert len(found(twin, image)["scores"]) == 1 and twin.transform.config is twin.config is twin.rpn.config
    assert len(found(model, image)["scores"]) == len(expected["scores"]) > 1
    double = found(copy.deepcopy(model).double(), image.double())
    assert double["scores"].dtype == torch.float64 and torch.allclose(
        double["scores"].float(), expected["scores"], atol=1e-4
    )
