"""What SAHI, supervision, torchmetrics, albumentations and torchvision's v2 ask of results, models and targets.

Only torchvision is installed for tests. The others are stood in for by what they check and call, of the versions named.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

import maskrcnn
from tests.tiny_model import SIZES, tiny_model, write_checkpoint, write_images
from train_utils.data.augmentations.own import OwnAugmentation
from train_utils.data.in_python.data_sets import data_set_of

pytestmark = pytest.mark.filterwarnings("ignore:.*box_detections_per_img allows")
SIZE = SIZES[0]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return np.array(Image.open(write_images(tmp_path_factory.mktemp("images"))[0]))


@pytest.fixture(scope="module")
def results(tmp_path_factory, pixels):
    weights = write_checkpoint(tmp_path_factory.mktemp("weights") / "model.pth")
    return maskrcnn.load(weights, device="cpu")(pixels, score=0.0)


@pytest.fixture
def target():
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    masks[0, 4:20, 6:30], masks[1, 22:40, 30:60] = 1, 1
    boxes = torch.tensor([[6.0, 4, 30, 20], [30, 22, 60, 40]])
    more = {"image_id": 1, "area": torch.ones(2), "iscrowd": torch.zeros(2, dtype=torch.uint8)}
    return {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, **more}


def test_supervision(results):
    """Detections(xyxy, mask, confidence, class_id) of 0.31 checks types and shapes of arrays."""
    count = len(results)
    xyxy, mask = results.boxes.numpy(), results.masks[:].numpy()
    assert xyxy.shape == (count, 4) and xyxy.dtype.kind == "f"
    assert mask.shape == (count, *SIZE) and mask.dtype == bool and mask.any()
    assert results.scores.numpy().shape == results.labels.numpy().shape == (count,)
    assert results.labels.numpy().dtype.kind == "i"


def test_torchmetrics(results):
    """MeanAveragePrecision of 1.9 takes dicts of tensors of one length; masks are bool or uint8."""
    prediction = {"boxes": results.boxes, "scores": results.scores, "labels": results.labels, "masks": results.masks[:]}
    assert all(type(value) is torch.Tensor and len(value) == len(results) for value in prediction.values())
    assert prediction["boxes"].is_floating_point() and prediction["scores"].is_floating_point()
    assert prediction["labels"].dtype == torch.int64 and prediction["masks"].dtype == torch.bool


def test_sahi(pixels):
    """TorchVisionDetectionModel of 0.12 calls the model on float tensors, and thresholds masks [D, 1, H, W]."""
    model = tiny_model()
    image = torch.from_numpy(pixels.transpose(2, 0, 1)).float().div(255)
    with torch.no_grad():
        (found,) = model([image])
    chosen = found["scores"] >= 0.1
    masks = found["masks"][chosen].cpu().detach().numpy()
    assert masks.dtype == np.float32 and masks.shape[1:] == (1, *SIZE) and (masks > 0.5).any()
    assert found["boxes"][chosen].cpu().detach().numpy().shape == (len(masks), 4)
    assert found["labels"][chosen].tolist() and set(found) == {"boxes", "labels", "scores", "masks"}


def flipped(image, masks, bboxes, labels):
    """A stand-in for albumentations' Compose([HorizontalFlip(p=1)], BboxParams("pascal_voc", label_fields=...))."""
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8 and all(m.shape == SIZE for m in masks)
    boxes = [(SIZE[1] - x2, y1, SIZE[1] - x1, y2) for x1, y1, x2, y2 in bboxes]
    return {"image": image[:, ::-1], "masks": [m[:, ::-1] for m in masks], "bboxes": boxes, "labels": list(labels)}


def test_albumentations(pixels, target):
    def augment(image, target):
        masks, boxes = list(target["masks"].numpy()), target["boxes"].tolist()
        out = flipped(image=image.permute(1, 2, 0).numpy(), masks=masks, bboxes=boxes, labels=target["labels"].tolist())
        boxes = torch.tensor(out["bboxes"], dtype=torch.float32)
        masks = torch.from_numpy(np.stack(out["masks"]))
        image = torch.from_numpy(out["image"].transpose(2, 0, 1).copy())
        return image, {"boxes": boxes, "labels": torch.tensor(out["labels"]), "masks": masks}

    image, changed = OwnAugmentation(augment)(
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()), target, torch.Generator()
    )
    assert torch.equal(image, torch.from_numpy(pixels[:, ::-1].transpose(2, 0, 1).copy()))
    assert changed["boxes"].tolist() == [[34, 4, 58, 20], [4, 22, 34, 40]]
    losses = tiny_model().train()([image], [{**changed, "sample_seed": 0}])
    assert all(torch.isfinite(value) for value in losses.values())


def test_v2_transforms_as_an_augmentation(pixels, target):
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(1.0), v2.RandomPhotometricDistort(p=0.5), v2.SanitizeBoundingBoxes()]
    )

    def augment(image, target):
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[1:])
        wrapped = {"boxes": boxes, "labels": target["labels"], "masks": tv_tensors.Mask(target["masks"])}
        return transform(tv_tensors.Image(image), wrapped)

    own, image = OwnAugmentation(augment), torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    one, changed = own(image, target, torch.Generator().manual_seed(1))
    two, _ = own(image, target, torch.Generator().manual_seed(1))
    assert torch.equal(one, two) and changed["boxes"].tolist() == [[34, 4, 58, 20], [4, 22, 34, 40]]
    assert type(one) is type(changed["boxes"]) is torch.Tensor


def test_torchvisions_coco_detection(tmp_path):
    """Its wrapper gives an image without annotations a target of an image_id alone."""
    paths = write_images(tmp_path / "images")[:2]
    images = [
        {"id": i, "file_name": path.name, "height": h, "width": w}
        for i, (path, (h, w)) in enumerate(zip(paths, SIZES, strict=False), 5)
    ]
    square = {"segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]], "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}
    one = {"images": images, "annotations": [{"id": 1, "image_id": 5, "category_id": 3, **square}]}
    (tmp_path / "a.json").write_text(json.dumps({**one, "categories": [{"id": 3, "name": "square"}]}))
    keys = ("image_id", "boxes", "labels", "masks", "iscrowd")
    pairs = wrap_dataset_for_transforms_v2(CocoDetection(tmp_path / "images", tmp_path / "a.json"), target_keys=keys)
    data = data_set_of(pairs)
    assert [len(data.target(i)["labels"]) for i in range(2)] == [1, 0] and data.target(0)["area"] == 64


def test_v2_transforms_of_results(results):
    boxes = tv_tensors.BoundingBoxes(results.boxes, format="XYXY", canvas_size=results.size)
    masks = tv_tensors.Mask(results.masks[:])
    _, turned = v2.RandomHorizontalFlip(1.0)({"boxes": boxes, "masks": masks}).values()
    assert torch.equal(turned, results.masks[:].flip(-1))
