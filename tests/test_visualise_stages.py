"""tools.visualise_stages: images and a page for every kind of sample, and what they say."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from network_files import CroppedMasks, create_model
from network_files.anchors import AnchorGrid
from network_files.operators.boxes import GEOMETRIES, HALF_PIXEL
from network_files.operators.roi_align import FeatureTable, roi_align
from tests.browser import Browser, needs_browser
from tests.plain_loops import random_boxes, slow_iou
from tests.tiny_model import NAMES, tiny_model, write_checkpoint, write_coco
from tools import visualise_stages
from tools.stages.canvas import GREEN, Canvas, sheet, window_around
from tools.stages.heads import CLOSE
from tools.stages.lesson import LESSONS, lessons_for
from tools.stages.masks import masks
from tools.stages.regions import proposals
from tools.stages.stage import ROOT, where
from tools.stages.trace import roi_align_points
from tools.stages.view import best_overlap, look
from train_utils.checkpoints.checkpoint import load_file
from train_utils.cli.flags import given_settings
from train_utils.data.loaders import TrainLoader
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from transforms import build_augment

WIDTH = 8  # of the backbone: small, and so quick to write and read
NAMES_OF_STAGES = [lesson.name for lesson in LESSONS]
WITHOUT_TARGET = [lesson.name for lesson in LESSONS if not lesson.needs_target]


@pytest.fixture
def data(tmp_path):
    return write_coco(tmp_path / "data")


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """Runs the tool in tmp_path -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, names=NAMES):
        path, trained_on = tmp_path / "model.pth", str(tmp_path / "data")
        weights = write_checkpoint(path, names=names, width=WIDTH, data_path=trained_on, photometric=True)
        return command(visualise_stages, "--device", "cpu", "--weights-path", weights, *flags)

    return run


class Reader(HTMLParser):
    """The ids of sections, the alternative texts of images, and all text of a page."""

    def __init__(self, page):
        super().__init__()
        self.sections, self.images, self.tags, self.text = [], [], set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag == "section":
            self.sections.append(attrs["id"])
        if tag == "img":
            assert attrs["src"].startswith("data:image/jpeg;base64,")
            self.images.append(attrs["alt"])

    def handle_data(self, data):
        self.text += data


def test_a_sample_of_the_data(run, data, tmp_path):
    status, out, err = run("--index", 1)
    assert (status, err) == (0, "")
    written = sorted((tmp_path / "stages").iterdir())
    wanted = [f"{i:02}_{name}.png" for i, name in enumerate(NAMES_OF_STAGES, 1)]
    assert [path.name for path in written] == [*wanted, "stages.html"] and all(path.name in out for path in written)
    for path in written[:-1]:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 150 and len(image.convert("L").getcolors(999)) > 9
    page = Reader(written[-1].read_text())
    assert page.sections == NAMES_OF_STAGES and len(page.images) > len(NAMES_OF_STAGES)
    assert "PhotometricJitter" in page.text and "1.png" in page.text  # the checkpoint's own flag
    for lesson in LESSONS:
        assert where(lesson.code[0]) in page.text


def test_an_image_alone_and_names_that_are_no_tags(run, data, tmp_path):
    names = {1: "<script>alert(1)</script>", 2: "a & b", 4: "c"}
    status, _, err = run("--img-path", data / "images" / "2.png", "--output-dir", "alone", names=names)
    assert (status, err) == (0, "")
    text = (tmp_path / "alone" / "stages.html").read_text()
    page = Reader(text)
    assert "all that the network is given" in page.text and "Augmentation changes" not in page.text
    assert page.sections == WITHOUT_TARGET and "--data-path DATA --index 0" in page.text
    assert "ground truth" not in " ".join(page.images) and "2.png" in page.text
    assert "script" not in page.tags and "&lt;script&gt;" in text


def test_without_objects_and_detections(run, data, tmp_path):
    for name in ("train", "val"):
        path = data / f"instances_{name}.json"
        content = json.loads(path.read_text())
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 11]
        path.write_text(json.dumps(content))
    status, _, err = run("--index", 1, "--split", "val", "--box-score-thresh", 0.999)
    page = Reader((tmp_path / "stages" / "stages.html").read_text())
    assert (status, err) == (0, "") and page.sections == NAMES_OF_STAGES
    texts = [lesson.empty for lesson in LESSONS if lesson.empty]
    assert len(texts) == 3 and all(text in page.text for text in texts)
    assert not (tmp_path / "stages" / "12_masks.png").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--index", 4), "--index 4: the train split of"),
        ((), "give either --index"),
        (("--index", 1, "--img-path", "x.png"), "give either --index"),
        (("--img-path", "nowhere.png"), "nowhere.png"),
        (("--img-path", "data"), "--img-path data: a folder"),
        (("--index", 1, "--data-path", "nowhere"), "nowhere: no such file or folder"),
        (("--index", 1, "--weights-path", "none.pth"), "none.pth: no such checkpoint file"),
    ],
)
def test_mistakes_are_one_line(run, data, tmp_path, flags, said):
    status, _, err = run(*flags)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "stages").exists()


def test_weights_of_other_classes_are_refused(run, tmp_path):
    write_coco(tmp_path / "data", {1: "dog", 2: "square"})
    status, _, err = run("--index", 0)
    assert status == 2 and "model.pth: its category 1 is 'circle', the data's is 'dog'" in err


def test_the_sample_is_that_of_training(monkeypatch, data, tmp_path):
    """Of the epoch and the index, as TrainLoader gives it."""
    splits = open_data(data)
    world, options = World.single(torch.device("cpu")), LoaderOptions(1, seed=3)
    loader = TrainLoader(
        splits.train, build_augment(horizontal_flip=0.5, vertical_flip=0.5, photometric=True), world, options
    )
    flags = {"vertical_flip": 0.5, "photometric": True, "seed": 3, "mini_mask": 8}
    weights = write_checkpoint(tmp_path / "model.pth", width=WIDTH, **flags)
    monkeypatch.setattr(
        sys, "argv", ["", "--weights-path", str(weights), "--data-path", str(data), "--index", "2", "--epoch", "5"]
    )
    given, content = visualise_stages.parse(), load_file(weights)
    options = visualise_stages.StageOptions(**given_settings(visualise_stages.StageOptions, given))
    sample = visualise_stages.sample_of_data(options, given, content, splits.label_map)
    (batch,) = (batch for batch in loader.epoch(5) if batch.indices == [2])
    assert torch.equal(sample.after[0], batch.images[0]) and sample.mini == 8
    assert sample.after[1]["sample_seed"] == batch.targets[0]["sample_seed"]
    assert torch.equal(sample.after[1]["boxes"], batch.targets[0]["boxes"])
    assert torch.equal(sample.before[0], splits.train[2][0])
    assert not torch.equal(sample.before[0], sample.after[0]) and "draws again" not in str(sample.lead)
    given |= {"horizontal_flip": 1e-9, "vertical_flip": 1e-9, "photometric": False}
    sample = visualise_stages.sample_of_data(options, given, content, splits.label_map)
    assert sample.lead[-1] == "By this draw it changed nothing; --epoch 6 draws again."


def target_of(boxes, height, width, crowds=0):
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "masks": CroppedMasks.from_masks(masks),
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "sample_seed": 1,
        "iscrowd": (torch.arange(len(boxes)) < crowds).to(torch.uint8),
    }


def many_boxes(count, height, width):
    corners = np.random.default_rng(0).integers(0, (width - 9, height - 9), (count, 2))
    return [(x, y, x + 8, y + 8) for x, y in corners.tolist()]


ODD = {  # height, width, boxes, crowds, config
    "one pixel": (40, 40, [(7, 7, 8, 8)], 0, {}),
    "only a crowd": (50, 60, [(5, 5, 50, 40)], 1, {}),
    "300 objects and a crowd": (200, 300, many_boxes(300, 200, 300), 1, {}),
    "a tall panorama": (900, 30, [(3, 100, 25, 400)], 0, {"max_size": 256}),
    "fixed size": (40, 90, [(10, 10, 30, 30)], 0, {"fixed_size": (64, 128)}),
    "one channel of 16 bits": (40, 60, [(5, 5, 30, 30)], 0, {"channels": 1, "value_range": (0, 4000)}),
    "five channels": (40, 60, [(5, 5, 30, 30)], 0, {"channels": 5}),
    "MobileNet, v2": (60, 60, [(10, 10, 40, 40)], 0, {"backbone": "mobilenet_v2", "variant": "v2"}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_samples(case):
    height, width, boxes, crowds, config = ODD[case]
    given = {**tiny_model(width=WIDTH).config.to_dict(), "norm": None, **config}
    model = create_model(**given)
    image = torch.randint(0, 255, (model.config.channels, height, width), dtype=torch.uint8)
    image = image if model.config.value_range is None else image / 255  # as it is read
    view = look(model, image, target_of(boxes, height, width, crowds), str, mini=4)
    assert lessons_for(view) == list(LESSONS) and len(view.objects) == len(boxes) - crowds
    for lesson in LESSONS:
        panels, facts = lesson.show(view)
        assert facts and "nan" not in str(facts) and "{" not in lesson.text_for(view) and (panels or lesson.empty)
        for caption, panel in panels:
            assert caption and 1 < min(panel.size) and max(panel.size) <= 1600, (lesson.name, panel.size)
        if panels:
            assert sheet(panels).width <= 1700
    assert not model.training or model.train().training  # as it was


def test_best_overlap_against_plain_loops():
    objects, boxes = (random_boxes(n, seed, extent=30.0, dtype=torch.float32) for n, seed in ((5, 1), (40, 2)))
    iou, index = best_overlap(objects, boxes)
    for i, object_ in enumerate(objects.tolist()):
        overlaps = [slow_iou(object_, box) for box in boxes.tolist()]
        assert iou[i] == pytest.approx(max(overlaps), abs=1e-6) and overlaps[index[i]] == pytest.approx(max(overlaps))
    assert best_overlap(objects, boxes[:0])[1].tolist() == [-1] * 5


def test_a_box_is_drawn_where_it_is():
    image = torch.zeros(3, 50, 100, dtype=torch.uint8)
    for window, scale in ((None, 7.2), ((20, 10, 60, 50), 18.0)):
        canvas = Canvas(image, window)
        canvas.box((30, 20, 50, 40), GREEN)
        rows, columns = np.nonzero((np.asarray(canvas.image) == GREEN).all(2))
        left, top = window[:2] if window else (0, 0)
        assert canvas.scale == scale
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        wanted = [(30 - left) * scale, (20 - top) * scale, (50 - left) * scale, (40 - top) * scale]
        assert np.abs(np.subtract(found, wanted)).max() <= 1
    assert window_around(torch.tensor([[0.0, 0, 1, 1]]), (3, 3)) == (0, 0, 3, 3)


def test_heat_lies_where_the_anchors_are():
    """Of a level, the middle of a hot cell is that of its anchors; the last cells reach to the border."""
    grid = AnchorGrid((32,), (0.5, 1.0, 2.0))
    hot = torch.zeros(4, 6)
    hot[2, 3] = 1
    anchors = grid([hot[None, None]], (32, 48))[0].view(4, 6, 3, 4)[2, 3]
    canvas = Canvas(torch.zeros(3, 32, 48, dtype=torch.uint8)).heat(hot, 48, 32, opacity=1)
    rows, columns = np.nonzero(np.asarray(canvas.image)[..., 0] == 252)
    assert len(rows) == (8 * canvas.scale) ** 2
    middle = ((columns.mean() + 0.5) / canvas.scale, (rows.mean() + 0.5) / canvas.scale)
    assert middle == pytest.approx(anchors.view(-1, 2, 2).mean(dim=(0, 1)).tolist())
    image = np.asarray(canvas.heat(torch.ones(4, 6), 48, 32, opacity=1).image)
    assert (image == image[0, 0]).all()


def test_anchors_are_numbered_within_their_level_and_the_limit_on_proposals_is_reported():
    view = look(tiny_model(width=WIDTH), torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8), None, str)
    start = 0
    for level, anchors in enumerate(view.seen["rpn"][0]["anchors"]):
        last = len(anchors) - 1
        assert view.place_of(start) == (level, 0) and view.place_of(start + last) == (level, last)
        start += len(anchors)
    facts, record = dict(proposals(view)[1]), view.seen["proposals"][0]
    left = sum(plain_nms(record, level) for level in range(5))
    assert facts["left by NMS, before the limit on proposals"] == f"{left:,}" and left > len(view.proposals) == 20
    count = len(view.detections["boxes"])  # those beyond the first few have no image of their own
    assert dict(masks(view)[1])["looked at closely"] == f"{CLOSE} of {count}" and count > CLOSE


def plain_nms(record, level):
    """How many boxes of a level NMS leaves."""
    own = record["levels"] == level
    kept = []
    for i in record["scores"][own].argsort(descending=True, stable=True).tolist():
        box = record["boxes"][own][i].tolist()
        if all(slow_iou(box, other) <= 0.7 for other in kept):
            kept.append(box)
    return len(kept)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_roi_align_points_are_where_roi_align_reads(geometry):
    """On a ramp, a bin's value is the mean place of its points."""
    centre = 0.5 if geometry == HALF_PIXEL else 0.0
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramps = 8 * torch.stack((x, y))[None] + 8 * centre  # the pixels of a map of stride 8
    zero = torch.zeros(1, dtype=torch.int64)
    for roi in (torch.tensor([10.0, 21, 95, 64]), torch.tensor([33.0, 40, 35, 90])):  # narrower than a cell, the second
        pooled = roi_align(FeatureTable([ramps], (8,), None, geometry), roi[None], zero, zero, 7)[0]  # [2, 7, 7]
        xs, ys = (points.view(7, 2).mean(1) for points in roi_align_points(roi, 8, 7, 2, geometry))
        torch.testing.assert_close(pooled[0], xs.expand(7, 7), rtol=0, atol=1e-3)
        torch.testing.assert_close(pooled[1], ys[:, None].expand(7, 7), rtol=0, atol=1e-3)


def test_where_names_the_line_of_the_definition():
    for lesson in LESSONS:
        for function in lesson.code:
            path, line, name = re.fullmatch(r"([\w/]+\.py):(\d+) (\S+)", where(function)).groups()
            text = (ROOT / path).read_text().splitlines()[int(line) - 1]
            assert re.match(rf"\s*(def|class) {name.split('.')[-1]}\b", text), where(function)


@needs_browser
def test_the_page_fits_a_phone(run, data, tmp_path):
    assert run("--img-path", data / "images" / "0.png")[0] == 0
    with Browser(360, 800) as browser:
        browser.open(tmp_path / "stages" / "stages.html")
        broken = browser.run("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
        assert not browser.too_wide() and broken == 0 and not browser.errors and not browser.fetched
