"""Instances drawn on an image: what matters can be seen, the rest of the image is left."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.show.drawing import draw_detections, instance_color


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 90, dtype=torch.uint8)


def disc(height: int, width: int, cx: float, cy: float, radius: float) -> torch.Tensor:
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    return ((x - cx) ** 2 + (y - cy) ** 2 < radius**2).to(torch.uint8)


def drawn(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def is_hue(pixel, color, tolerance: float = 0.03) -> bool:
    hues = [colorsys.rgb_to_hsv(*(float(v) / 255 for v in rgb))[0] for rgb in (pixel, color)]
    distance = abs(hues[0] - hues[1])
    return min(distance, 1 - distance) < tolerance


def test_colours_of_a_hundred_instances_differ():
    colors = [instance_color(i) for i in range(100)]
    gaps = [max(abs(a - b) for a, b in zip(p, q, strict=True)) for p, q in itertools.combinations(colors, 2)]
    assert min(gaps) > 2 and len(set(colors)) == 100
    near = [max(abs(a - b) for a, b in zip(p, q, strict=True)) for p, q in itertools.pairwise(colors)]
    assert min(near) > 80


def test_mask_box_and_caption_are_where_they_belong():
    image = grey(240, 320)
    boxes = torch.tensor([[40.0, 80, 140, 180], [200, 100, 280, 180]])
    masks = CroppedMasks.from_masks(torch.stack([disc(240, 320, 90, 130, 50), disc(240, 320, 240, 140, 40)]))
    before = image.clone()
    result = draw_detections(image, boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), masks)
    pixels = drawn(result)
    assert torch.equal(image, before)
    for i, (x, y) in enumerate(((90, 130), (240, 140))):
        color = instance_color(i)
        assert is_hue(pixels[:, y, x], color) and tuple(pixels[:, y, x].tolist()) != color  # tinted, not covered
        x1, y1, x2, y2 = (int(v) for v in boxes[i])
        for point in ((y1, x1), (y2 - 1, x2 - 1), ((y1 + y2) // 2, x1), (y2 - 1, (x1 + x2) // 2)):
            assert tuple(pixels[:, point[0], point[1]].tolist()) == color
        plate = pixels[:, y1 - 12 : y1 - 2, x1 : x1 + 30].flatten(1).T  # the caption stands above the box
        assert sum(tuple(p.tolist()) == color for p in plate) > 100
        assert any(max(p.tolist()) < 60 or min(p.tolist()) > 200 for p in plate)  # and has letters
    darker = drawn(draw_detections(image // 3, boxes, torch.tensor([1, 2]), None, masks))
    assert (darker[:, 130, 90] < pixels[:, 130, 90]).all()  # the image shines through
    untouched = torch.ones(240, 320, dtype=torch.bool)
    untouched[60:182, 38:282] = False
    assert torch.equal(pixels[:, untouched], image[:, untouched])


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (16, 16), (128, 96), (1500, 2000)])
def test_any_size_and_boxes_at_the_border(size):
    height, width = size
    boxes = torch.tensor([[0.0, 0, width, height], [width - 0.5, height - 0.5, width, height], [-3, -3, 0, 0]])
    masks = CroppedMasks.from_masks(torch.ones(3, height, width, dtype=torch.uint8))
    image = draw_detections(grey(*size), boxes, torch.tensor([1, 2, 3]), torch.rand(3), masks, lambda label: "hé")
    assert image.size == (width, height) and image.mode == "RGB"
    assert not torch.equal(drawn(image), grey(*size))


def test_letters_grow_with_the_image():
    heights = []
    for scale in (1, 4):
        image = grey(600 * scale, 800 * scale)
        box = torch.tensor([[100.0, 150, 300, 250]]) * scale
        pixels = drawn(draw_detections(image, box, torch.tensor([1]), torch.tensor([0.5]), None, lambda label: "cat"))
        plate = (pixels == torch.tensor(instance_color(0), dtype=torch.uint8)[:, None, None]).all(0)[: 150 * scale]
        heights.append(int(plate.any(1).sum()))
    assert 10 <= heights[0] and 3 * heights[0] < heights[1] < 5 * heights[0]


def test_captions_avoid_one_another():
    boxes = torch.tensor([[100.0, 100, 200, 200]] * 4)
    pixels = drawn(draw_detections(grey(400, 400), boxes, torch.arange(4), None, None, lambda label: "same place"))
    counts = [
        int((pixels == torch.tensor(instance_color(i), dtype=torch.uint8)[:, None, None]).all(0).sum())
        for i in range(4)
    ]
    assert min(counts) > 0.6 * max(counts)


def test_no_detections_leave_the_image_as_it_is():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    assert torch.equal(drawn(draw_detections(image, *nothing, CroppedMasks.empty((40, 60)))), image)


def test_ground_truth_has_no_scores_and_empty_masks_are_no_error():
    masks = CroppedMasks.from_masks(torch.zeros(1, 60, 60, dtype=torch.uint8))
    box, label = torch.tensor([[10.0, 20, 50, 50]]), torch.tensor([1])
    without = draw_detections(grey(60, 60), box, label, None, masks, lambda label: "a")
    with_score = draw_detections(grey(60, 60), box, label, torch.tensor([0.5]), masks, lambda label: "a")
    assert not torch.equal(drawn(without), drawn(with_score))


def test_magnify():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    mask = CroppedMasks.from_masks(disc(20, 30, 22, 14, 5)[None])
    box, label = torch.tensor([[17.0, 9, 27, 19]]), torch.tensor([1])
    pixels = drawn(draw_detections(image, box, label, None, mask, lambda label: "a", magnify=4))
    assert pixels.shape == (3, 80, 120)
    assert torch.equal(pixels[:, 4:20:4, :40:4], image[:, 1:5, :10])  # away from the instance
    color = torch.tensor(instance_color(0), dtype=torch.uint8)
    assert torch.equal(pixels[:, 9 * 4, 17 * 4], color) and torch.equal(pixels[:, 19 * 4 - 1, 27 * 4 - 1], color)
