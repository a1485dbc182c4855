"""Instances drawn on an image: what matters can be seen, the rest of the image is left."""

import colorsys
import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from network_files.operators.cropped_masks import CroppedMasks
from train_utils.show import captions, colors, drawing
from train_utils.show.captions import Lettering, arrange
from train_utils.show.colors import APART, FROM_IMAGE, choose_colors, class_colors, distance, hues_on, instance_color
from train_utils.show.drawing import FEW, Style, draw_detections, magnified

AS_IT_IS = Style(magnify=1)


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
    result = draw_detections(image, boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), masks, style=AS_IT_IS)
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
    darker = drawn(draw_detections(image // 3, boxes, torch.tensor([1, 2]), None, masks, style=AS_IT_IS))
    assert (darker[:, 130, 90] < pixels[:, 130, 90]).all()  # the image shines through
    untouched = torch.ones(240, 320, dtype=torch.bool)
    untouched[60:182, 38:282] = False
    assert torch.equal(pixels[:, untouched], image[:, untouched])


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (16, 16), (128, 96), (1500, 2000)])
def test_any_size_and_boxes_at_the_border(size):
    height, width = size
    boxes = torch.tensor([[0.0, 0, width, height], [width - 0.5, height - 0.5, width, height], [-3, -3, 0, 0]])
    masks = CroppedMasks.from_masks(torch.ones(3, height, width, dtype=torch.uint8))
    image = draw_detections(
        grey(*size), boxes, torch.tensor([1, 2, 3]), torch.rand(3), masks, lambda label: "hé", AS_IT_IS
    )
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
    boxes, names = np.array([[100.0, 100, 200, 200]] * 4), ["same place"] * 4
    written, legend, _ = arrange(names, None, boxes, Lettering((400, 400)), "full")
    corners = np.array([place for _, place in written])
    apart = np.abs(corners[:, None] - corners).max(axis=2)[np.triu_indices(4, 1)]
    assert apart.min() > 10 and legend == {}


def rows_of(count: int, side: int = 640) -> np.ndarray:
    """Boxes of `count` objects in rows, [count, 4]."""
    across = int(np.ceil(np.sqrt(count)))
    step, places = side / across, np.arange(count)
    x, y = step * (places % across), step * (places // across)
    return np.stack([x, y, x + 0.7 * step, y + 0.7 * step], axis=1)


NAMES = ["person", "chair", "traffic light"]


@pytest.mark.parametrize("count", [2, 12, 40, 102])
def test_captions_hide_no_other_objects_centre_and_not_the_image(count):
    boxes, lettering = rows_of(count), Lettering((640, 640))
    names = [NAMES[i % 3] for i in range(count)]
    written, legend, corner = arrange(names, [0.5] * count, boxes, lettering)
    assert any(written) == (count < 100) and (corner is None) == (count < 100)
    assert legend == ({} if count < 100 else {name: 34 for name in NAMES})
    plates = [(i, *place, text) for i, one in enumerate(written) if one for text, place in [one]]
    centres, area = (boxes[:, :2] + boxes[:, 2:]) / 2, 0
    for i, x, y, text in plates:
        right, bottom = x + lettering.width(text), y + lettering.height
        inside = ((centres > (x, y)) & (centres < (right, bottom))).all(axis=1)
        assert not inside[np.arange(count) != i].any() and 0 <= x and right <= 640 and 0 <= y and bottom <= 640
        area += (right - x) * (bottom - y)
    assert area <= 640 * 640 / 5
    every, *_ = arrange(names, [0.5] * count, boxes, lettering, "full")
    assert all(text == f"{name} 0.50" for (text, _), name in zip(every, names, strict=True))


def test_a_caption_that_finds_no_place_is_left_out():
    crowd = [[x, y, x + 4, y + 4] for x in range(200, 420, 8) for y in range(200, 420, 8)]
    boxes = np.array([[280.0, 280, 340, 340], [10, 10, 60, 60], [500, 500, 600, 600], *crowd])
    names, lettering = ["one", "two", "three", *[""] * len(crowd)], Lettering((640, 640))
    assert [one is not None for one in arrange(names, None, boxes, lettering)[0][:3]] == [False, True, True]
    assert arrange(names, None, boxes, lettering, "full")[0][0] is not None


def test_a_caption_goes_where_it_hides_no_centre():
    pairs = [[x, y + k, x + 60, y + k + 10] for x in (100, 300) for y in range(40, 600, 80) for k in (12, 0)]
    boxes, lettering = np.array(pairs, dtype=float), Lettering((640, 640))
    written, *_ = arrange([NAMES[i % 3] for i in range(len(boxes))], None, boxes, lettering)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for text, place in written:  # every one found a place: beside its object, where it is not above or below
        end = np.array(place) + (lettering.width(text), lettering.height)
        assert not ((centres > place) & (centres < end)).all(axis=1).any()


def test_one_class_has_a_legend_and_few_scores():
    lettering = Lettering((640, 640))
    for count in (2, FEW, FEW + 1, 150):
        written, legend, corner = arrange(["cell"] * count, [0.9] * count, rows_of(count), lettering)
        assert legend == {"cell": count} and corner is not None
        assert {text for text, _ in filter(None, written)} == ({"0.90"} if count <= FEW else set())
        written, *_ = arrange(["cell"] * count, [0.9] * count, rows_of(count), lettering, "scores")
        assert all(text == "0.90" for text, _ in written)
    written, legend, corner = arrange(["cell"], [0.9], rows_of(1), lettering)
    assert written[0][0] == "cell 0.90" and legend == {} and corner is None
    assert arrange(["cell"] * 2, [0.9] * 2, rows_of(2), lettering, "none") == ([None, None], {}, None)


def test_many_classes_are_counted_together_and_a_tiny_image_has_no_legend():
    names = [f"class {i // (12 - i % 3)}" for i in range(200)]
    image, boxes = grey(640, 640), torch.from_numpy(rows_of(200))
    written = draw_detections(image, boxes, torch.arange(200), None, None, names.__getitem__)
    without = draw_detections(image, boxes, torch.arange(200), None, None, lambda label: "")
    assert not torch.equal(drawn(written), drawn(without))
    counts = {f"class {i}": 10 for i in range(20)}
    assert captions._lines(counts)[-2:] == ["class 7: 10", "and 12 more: 120"]
    assert arrange(["a", "b"] * 100, None, rows_of(200, 16), Lettering((16, 16))).corner is None


def test_no_name_leaves_no_plate():
    image, boxes, labels = grey(150, 200), torch.from_numpy(rows_of(5, 140)), torch.ones(5, dtype=torch.int64)
    nameless = draw_detections(image, boxes, labels, None, None, lambda label: "")
    assert torch.equal(drawn(nameless), drawn(draw_detections(image, boxes, labels, None, None, style=Style("none"))))


@pytest.mark.parametrize(("count", "style", "boxed"), [(4, Style(), True), (FEW + 1, Style(), False),
                                                       (4, Style(boxes=False), False)])  # fmt: skip
def test_boxes_give_way_to_masks(count, style, boxed):
    boxes = torch.from_numpy(rows_of(count)) + 5
    discs = [disc(640, 640, *((box[:2] + box[2:]) / 2).tolist(), float(box[2] - box[0]) / 2 - 1) for box in boxes]
    masks = CroppedMasks.from_masks(torch.stack(discs))
    for shown in (masks, None):  # without masks there are always boxes
        image = draw_detections(grey(640, 640), boxes, torch.ones(count), None, shown, lambda label: "", style)
        corner = drawn(image)[:, int(boxes[0, 1]), int(boxes[0, 0])]
        assert (corner.tolist() != [90, 90, 90]) == (boxed or shown is None)


def test_colours_differ_from_the_image_and_from_the_neighbours():
    boxes = rows_of(400)
    for mean in ((90, 90, 90), (60, 120, 40), (5, 5, 5), (225, 210, 220)):
        chosen = np.array(choose_colors(boxes, (640, 640), np.array(mean)))
        away = distance(np.array([instance_color(i) for i in range(16)]), np.array([mean]))[:, 0]  # of the palette
        assert distance(chosen, np.array([mean])).min() >= min(FROM_IMAGE, np.sort(away)[8])
        grid = chosen.reshape(20, 20, 3)
        for a, b in ((grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1])):
            assert (
                min(distance(p[None], q[None])[0, 0] for p, q in zip(a.reshape(-1, 3), b.reshape(-1, 3), strict=True))
                >= APART
            )
    assert len(hues_on(np.array((60, 120, 40)))) < 16
    groups = [i % 3 for i in range(400)]
    mean = np.array((90, 90, 90))
    chosen, own = choose_colors(boxes, (640, 640), mean, groups), class_colors(3, mean)
    for color, group in zip(chosen, groups, strict=True):  # a shade of its class's
        assert color in {tuple(shade) for shade in colors._shades(np.array(own[group])).tolist()}
    assert len(set(chosen)) == 9


class Counting:
    """numpy, or a function of it: what is called adds to `count` how many numbers it returns."""

    def __init__(self, whole: object, count: list[int]) -> None:
        self.whole, self.count = whole, count

    def __getattr__(self, name: str) -> object:
        value = getattr(self.whole, name)
        return Counting(value, self.count) if callable(value) and not isinstance(value, type) else value

    def __call__(self, *args: object, **kwargs: object) -> object:
        result = self.whole(*args, **kwargs)
        self.count[0] += getattr(result, "size", 1)
        return result


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_the_work_grows_with_the_objects_and_not_with_their_square(monkeypatch, mode):
    def work(count):
        boxes, calls, numbers = torch.from_numpy(rows_of(count, 500)), [0], [0]
        masks = CroppedMasks(
            torch.ones(count * 64, dtype=torch.uint8), torch.tensor([[8, 8, 16, 16]] * count), (500, 500)
        )
        for module in (captions, colors, drawing):
            monkeypatch.setattr(module, "np", Counting(np, numbers))
        sys.setprofile(lambda frame, event, arg: calls.__setitem__(0, calls[0] + 1))
        try:
            draw_detections(grey(500, 500), boxes, torch.arange(count) % 3, None, masks, NAMES.__getitem__, Style(mode))
        finally:
            sys.setprofile(None)
        return np.array((calls[0], numbers[0]))

    few, many = work(150), work(600)
    assert (many < 4.2 * few).all(), (few, many)


@pytest.mark.parametrize(
    ("size", "times"), [((1, 1), 16), ((128, 96), 5), ((200, 320), 2), ((321, 4), 1), ((9, 4000), 1)]
)
def test_small_images_are_magnified_by_themselves(size, times):
    assert magnified(size) == times and magnified(size, 3) == 3
    image = draw_detections(grey(*size), torch.zeros(0, 4), torch.zeros(0), None, None)
    assert image.size == (size[1] * times, size[0] * times)


def test_no_detections_leave_the_image_as_it_is():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    assert torch.equal(drawn(draw_detections(image, *nothing, CroppedMasks.empty((40, 60)), style=AS_IT_IS)), image)


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
    pixels = drawn(draw_detections(image, box, label, None, mask, lambda label: "a", Style(magnify=4)))
    assert pixels.shape == (3, 80, 120)
    assert torch.equal(pixels[:, 4:20:4, :40:4], image[:, 1:5, :10])  # away from the instance
    color = torch.tensor(instance_color(0), dtype=torch.uint8)
    assert torch.equal(pixels[:, 9 * 4, 17 * 4], color) and torch.equal(pixels[:, 19 * 4 - 1, 27 * 4 - 1], color)
