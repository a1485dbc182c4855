"""Half-pixel masks: against plain loops, and the laws that they keep: what is cut out comes back where it was."""

import pytest
import torch

from network_files import Recorder, create_model, load_weights
from network_files.operators.boxes import GEOMETRIES, HALF_PIXEL, HALF_PIXEL_MASKS, TORCHVISION
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool, mask_targets, paste_masks
from network_files.recorder import Stage
from tests.plain_loops import slow_covered, slow_paste
from tests.test_instance_masks import PASTE_BOXES, random_rois, some_masks
from tests.tiny_model import FIELDS, tiny
from train_utils.checkpoints.checkpoint import save_checkpoint
from train_utils.run.config import RunConfig
from train_utils.run.defaults import with_geometry

FITTING = HALF_PIXEL, HALF_PIXEL_MASKS  # geometries in which masks fit
TINY_BOXES = [[20.4, 20.4, 20.9, 20.9], [20.6, 20.6, 21.4, 21.4], [20.1, 5.3, 20.8, 33.9], [7, 9, 8, 10]]


def targets(masks, rois, resized=None, cells=28, matched=None, geometry=HALF_PIXEL):
    """The targets of RoIs of one image."""
    matched = torch.arange(len(rois)) if matched is None else matched
    return mask_targets([masks], [rois], [matched], [resized or masks.size], cells, geometry)


def blobs(count=60, size=160, longest=60.0, seed=0):
    """Ellipses at any place and turn, as masks and their tight boxes: the thinnest is a pixel wide."""
    rng = torch.Generator().manual_seed(seed)
    axis = torch.arange(size) + 0.5
    middle = torch.rand(count, 2, generator=rng) * (size - 2 * longest) + longest
    a, b, turn = (torch.rand(3, count, generator=rng) ** 2 * torch.tensor([[1.0], [0.7], [0]])).unbind(0)
    a, b, turn = (1.5 + a * longest / 2)[:, None, None], (1.0 + b * longest / 2)[:, None, None], turn[:, None, None] * 6
    x, y = axis - middle[:, 0, None, None], axis[:, None] - middle[:, 1, None, None]
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    masks = CroppedMasks.from_masks((u / a) ** 2 + (v / b) ** 2 <= 1)
    masks = masks[(masks.boxes[:, 2:] > masks.boxes[:, :2]).all(1)]
    return masks, masks.boxes.float()


def ious(masks, others):
    """The overlap of each mask with its other."""
    a, b = (m.to_masks().bool().flatten(1) for m in (masks, others))
    return (a & b).sum(1) / (a | b).sum(1)


@pytest.mark.parametrize("resized", [(13, 17), (26, 34), (9, 21)])
def test_targets_equal_the_loop(resized):
    masks = some_masks()[:, 3:16, 5:22]
    height, width = resized
    rois = random_rois(6, *resized, torch.float64)
    rois[4] = torch.tensor([3.2, 4.1, 3.9, 4.15])  # far less than a pixel
    original = rois * torch.tensor([17 / width, 13 / height] * 2, dtype=torch.float64)
    found = targets(CroppedMasks.from_masks(masks), rois, resized, 5)
    slow = [slow_covered(mask.tolist(), box, 5) for mask, box in zip(masks, original.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-10)


def test_targets_of_limited_masks_equal_the_loop_over_what_is_kept():
    few = CroppedMasks.from_masks(some_masks()[:3]).limited(6)
    rois = random_rois(3, 37, 53, torch.float64)
    slow = []
    for i, (box, (x1, y1, x2, y2)) in enumerate(zip(rois, few.boxes.tolist(), strict=True)):
        columns, rows = few.sides()[i].tolist()
        kept = few.pixels[few.offsets()[i] : few.offsets()[i + 1]].view(rows, columns)
        scale = torch.tensor([columns / (x2 - x1), rows / (y2 - y1)] * 2, dtype=torch.float64)
        slow.append(slow_covered(kept.tolist(), ((box - torch.tensor([x1, y1] * 2)) * scale).tolist(), 5))
    torch.testing.assert_close(targets(few, rois, cells=5), torch.tensor(slow, dtype=torch.float64))


def test_paste_equals_the_loop():
    boxes = torch.tensor(PASTE_BOXES + TINY_BOXES, dtype=torch.float64)
    probs = torch.rand(len(boxes), 5, 5, dtype=torch.float64)
    found = paste_masks(probs, boxes, (37, 53), HALF_PIXEL)
    some = [i for i in range(len(boxes)) if (boxes[i, 2:] > boxes[i, :2]).all()]
    slow = [slow_paste(probs[i].tolist(), boxes[i].tolist(), 37, 53) for i in some]
    torch.testing.assert_close(found[some, 0], torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("geometry", FITTING)
@pytest.mark.parametrize("cells", [7, 28])
def test_a_full_box_stays_a_full_box(cells, geometry):
    boxes = torch.tensor([[0, 0, 53, 37], [7, 9, 8, 10], [5, 3, 50, 4], [11, 2, 39, 30], [40, 30, 53, 37.0]])
    masks = CroppedMasks(torch.ones(sum((int((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in boxes.tolist())),
                                    dtype=torch.uint8), boxes.long(), (37, 53))  # fmt: skip
    for resized in ((37, 53), (101, 144), (20, 29)):
        rois = boxes * torch.tensor([resized[1] / 53, resized[0] / 37] * 2)
        found = targets(masks, rois, resized, cells, geometry=geometry)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-4)
        back = mask_probs_to_bool(found, boxes, masks.size, geometry)
        assert torch.equal(back.to_masks(), masks.to_masks())


def test_what_is_cut_out_comes_back():
    masks, boxes = blobs()
    small = (boxes[:, 2:] - boxes[:, :2]).amax(1) <= 28
    assert 20 < small.sum() < len(masks)
    reached = {}
    for geometry in GEOMETRIES:
        cut = targets(masks, boxes * 1.7, (272, 272), geometry=geometry)
        reached[geometry] = ious(masks, mask_probs_to_bool(cut, boxes, masks.size, geometry))
    for geometry in FITTING:
        assert reached[geometry][small].mean() > 0.995 and reached[geometry].mean() > 0.97
    assert reached[TORCHVISION].mean() < 0.9


def mirrored(boxes, size):
    return torch.stack((size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]), 1)


@pytest.mark.parametrize("geometry", FITTING)
@pytest.mark.parametrize("limit", [None, 6])
def test_a_flip_commutes_with_cutting_out_and_pasting(limit, geometry):
    masks = CroppedMasks.from_masks(some_masks())[[0, 1, 2, 3, 5, 0, 1]]
    kept, flipped = (m if limit is None else m.limited(limit) for m in (masks, masks.hflip()))
    rois = random_rois(7, 60, 90, torch.float64)
    cut = targets(kept, rois, (60, 90), geometry=geometry)
    assert cut.amax() > 0.5
    again = targets(flipped, mirrored(rois, (60, 90)), (60, 90), geometry=geometry)
    torch.testing.assert_close(again, cut.flip(2), rtol=0, atol=1e-6)
    boxes = torch.tensor([*PASTE_BOXES[:5], *TINY_BOXES, [10.5, 8.5, 20.5, 12.5]], dtype=torch.float64)
    probs = torch.rand(len(boxes), 28, 28, dtype=torch.float64)
    pasted = paste_masks(probs, boxes, (37, 53), geometry)
    again = paste_masks(probs.flip(2), mirrored(boxes, (37, 53)), (37, 53), geometry)
    torch.testing.assert_close(again, pasted.flip(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("geometry", FITTING)
def test_a_pixels_shift_shifts_targets_and_masks_by_a_pixel(geometry):
    masks = CroppedMasks.from_masks(some_masks()[:3])
    moved = masks.window(-1, 0, 53, 37)
    rois = random_rois(3, 37, 50, torch.float64)
    right = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    cut = targets(masks, rois, geometry=geometry)
    torch.testing.assert_close(targets(moved, rois + right, geometry=geometry), cut, rtol=0, atol=1e-10)
    whole, again = (paste_masks(cut, boxes, (37, 53), geometry) for boxes in (rois, rois + right))
    torch.testing.assert_close(again[..., 1:], whole[..., :-1], rtol=0, atol=1e-10)
    # a RoI of a pixel for each cell: the target is the mask itself, and its shift the target's
    roi = torch.tensor([[8.0, 5, 36, 33]], dtype=torch.float64)
    still, along = (targets(m[[1]], roi, geometry=geometry)[0] for m in (masks, moved))
    assert torch.equal(still, masks.to_masks()[1, 5:33, 8:36].double())
    assert torch.equal(along[:, 1:], still[:, :-1])


@pytest.mark.parametrize("geometry", FITTING)
def test_an_object_of_a_pixel_is_a_pixel_wherever_its_box_is_seen_from(geometry):
    mask = torch.zeros(1, 37, 53, dtype=torch.uint8)
    mask[0, 9, 7] = 1
    masks = CroppedMasks.from_masks(mask)
    for box in ([7.0, 9, 8, 10], [6.7, 8.8, 8.2, 10.4], [4.0, 4, 18, 18]):
        boxes = torch.tensor([box])
        cut = targets(masks, boxes, geometry=geometry)
        assert torch.equal(mask_probs_to_bool(cut, boxes, (37, 53), geometry).to_masks(), mask)


def checkpoint_of(model, geometry):
    """A checkpoint as far as it is looked at here; geometry None: of before there was another."""
    config = {key: value for key, value in model.config.to_dict().items() if key != "geometry"}
    config |= {} if geometry is None else {"geometry": geometry}
    return {"format_version": 1, "model": model.state_dict(), "config": config, "label_map": {}}


def test_a_run_takes_the_geometry_that_its_mask_head_was_trained_in(tmp_path):
    model = tiny()
    body = {key.removeprefix("backbone.body."): v for key, v in model.state_dict().items() if "backbone.body" in key}
    files = {
        "old.pth": checkpoint_of(model, None), "theirs.pth": checkpoint_of(model, TORCHVISION),
        "half.pth": checkpoint_of(model, HALF_PIXEL), "state.pth": model.state_dict(),
        "wrapped.pth": {"model": {f"module.{key}": v for key, v in model.state_dict().items()}}, "body.pth": body,
    }  # fmt: skip
    for name, content in files.items():
        save_checkpoint(tmp_path / name, content)
    expected = {
        "none": HALF_PIXEL, "imagenet": HALF_PIXEL, "coco": TORCHVISION, "old.pth": TORCHVISION,
        "theirs.pth": TORCHVISION, "half.pth": HALF_PIXEL, "state.pth": TORCHVISION, "wrapped.pth": TORCHVISION,
        "body.pth": HALF_PIXEL, "absent.pth": HALF_PIXEL,
    }  # fmt: skip
    for name, geometry in expected.items():
        weights = tmp_path / name if name.endswith("pth") else name
        config, line = with_geometry(RunConfig.of({"weights": weights}), None)
        assert config.model == {"geometry": geometry} and line.startswith(f"geometry: {geometry}, "), name
        assert ("the mask head is new" in line) == (name in ("none", "imagenet", "body.pth", "absent.pth"))
    for resumed, geometry in (("old.pth", TORCHVISION), ("half.pth", HALF_PIXEL)):
        config, line = with_geometry(RunConfig.of({"weights": "none"}), files[resumed])
        assert config.model["geometry"] == geometry and "of the resumed checkpoint" in line
    for name in ("coco", "state.pth", "wrapped.pth"):  # for another number of classes their predictors are replaced
        config = RunConfig.of({"weights": name if name == "coco" else tmp_path / name})
        replaced, line = with_geometry(config, None, classes=3)
        assert replaced.model["geometry"] == HALF_PIXEL_MASKS and "as the predictors are new" in line
        assert with_geometry(config, None, classes=91 if name == "coco" else 4)[0].model["geometry"] == TORCHVISION
    for name in ("old.pth", "half.pth", "none"):  # what a checkpoint says stays
        config = RunConfig.of({"weights": name if name == "none" else tmp_path / name})
        assert with_geometry(config, None, classes=3)[0].model["geometry"] == expected[name]
    chosen = RunConfig.of({"weights": "coco", "geometry": HALF_PIXEL})
    assert with_geometry(chosen, files["old.pth"]) == (chosen, "geometry: half_pixel")


def test_weights_of_the_other_geometry_are_said():
    model = tiny()
    for geometry, content, said in (
        (HALF_PIXEL, checkpoint_of(model, None), True),
        (TORCHVISION, checkpoint_of(model, HALF_PIXEL), True),
        (TORCHVISION, checkpoint_of(model, None), False),
        (HALF_PIXEL, model.state_dict(), False),
    ):
        lines = load_weights(create_model(4, **FIELDS, geometry=geometry), content)
        assert ("half a pixel apart" in lines[-1]) == said


def test_a_models_geometry_reaches_its_features_its_targets_and_its_masks():
    torch.manual_seed(0)
    image, masks = torch.rand(3, 48, 64), CroppedMasks.from_masks(some_masks(48, 64)[:4])
    target = {"boxes": masks.boxes.float(), "labels": torch.ones(4, dtype=torch.int64), "masks": masks}
    target["sample_seed"] = 0
    seen = {}
    for geometry in GEOMETRIES:
        torch.manual_seed(0)
        model = tiny(geometry=geometry, norm="batch", box_score_thresh=0.0, box_detections_per_img=5).eval()
        seen[geometry] = recorder = Recorder()
        with torch.no_grad():
            _, (found,) = model([image], [target], recorder=recorder)
            (cropped,) = model([image], paste_masks=False)
        pasted = paste_masks(cropped["mask_probs"], cropped["boxes"], (48, 64), geometry)
        torch.testing.assert_close(found["masks"], pasted)
        (record,) = recorder[Stage.MASK_TARGETS]
        again = mask_targets([masks], record["rois"], record["matched"], [(64, 85)], 28, geometry)
        torch.testing.assert_close(record["targets"], again)
    theirs, half, masks_alone = (seen[g][Stage.ROIS][0]["pooled"] for g in (TORCHVISION, HALF_PIXEL, HALF_PIXEL_MASKS))
    assert theirs.shape == half.shape and not torch.allclose(theirs, half) and torch.equal(theirs, masks_alone)
    one, other = (seen[g][Stage.MASK_TARGETS][0]["targets"] for g in (TORCHVISION, HALF_PIXEL_MASKS))
    assert not torch.allclose(one, other)
