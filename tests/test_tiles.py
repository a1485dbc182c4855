"""Tiles of a large image: a detector that sees in each tile what is true gives, joined, what is true."""

import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
import predict
import validation
from backbone.errors import InputError
from benchmarks.large_images.tiles import Found, Truth, cut, kinds_of
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import encode_cropped
from tests.tiny_model import NAMES, tiny_model, write_checkpoint, write_coco, write_images
from train_utils.data.labels import LabelMap
from train_utils.data.tiles.tiling import Tiling
from train_utils.evaluation import tiled_model
from train_utils.evaluation.compact_masks import CompactMasks
from train_utils.evaluation.tiled_model import TiledModel, joined, needed_in
from train_utils.io.plain_text import counted
from train_utils.prediction import large_drawings
from train_utils.prediction.jobs import drawn_images
from train_utils.prediction.looking import LookingOptions, tiling_of
from train_utils.prediction.runtimes.exported_model import ExportedModel, describe

SIZE = (150, 190)


def ellipses(count: int, seed: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Returns masks of ellipses that overlap, uint8 [N, H, W]; some reach over the image's border."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    radii = torch.rand(count, 2, generator=generator) * 17 + 3
    masks = [((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 < 1 for c, r in zip(centres, radii, strict=True)]
    return torch.stack(masks).to(torch.uint8)


def seen_in_tiles(masks: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor, tiles: torch.Tensor) -> list[dict]:
    """Returns per tile what a perfect detector finds there: each object that has a pixel in it."""
    found = []
    for x1, y1, x2, y2 in tiles.tolist():
        seen = masks[:, y1:y2, x1:x2]
        own = seen.flatten(1).bool().any(1)
        cropped = CroppedMasks.from_masks(seen[own])
        found.append({"boxes": cropped.boxes.float(), "labels": labels[own], "scores": scores[own], "masks": cropped})
    return found


def by_object(found: dict) -> set[tuple]:
    """Returns box, label and pixels of each detection."""
    masks = found["masks"].to_masks()
    return {
        (tuple(box), label, mask.numpy().tobytes())
        for box, label, mask in zip(found["boxes"].tolist(), found["labels"].tolist(), masks, strict=True)
    }


@pytest.mark.parametrize(("side", "overlap"), [(64, 0.25), (80, 0.5), (400, 0.2)])
def test_what_is_seen_in_parts_is_joined_exactly(side, overlap):
    masks = ellipses(40, seed=side)
    masks = masks[masks.flatten(1).bool().any(1)]
    labels, scores = torch.arange(len(masks)) % 3 + 1, torch.linspace(0.9, 0.5, len(masks))
    tiles = Tiling(side, overlap).boxes(SIZE)

    result = joined(seen_in_tiles(masks, labels, scores, tiles), tiles, SIZE)

    truth = CroppedMasks.from_masks(masks)
    whole = by_object({"boxes": truth.boxes.float(), "labels": labels, "masks": truth})
    assert by_object(result) == whole
    assert result["scores"].tolist() == scores.tolist()


def test_tiles_cover_the_image_evenly_and_share_what_was_asked_for():
    for size in ((100, 333), (64, 64), (65, 64), (31, 500), (1000, 90)):
        for side, overlap in ((64, 0.2), (64, 0.0), (64, 0.5)):
            tiles, seen = Tiling(side, overlap).boxes(size), torch.zeros(size, dtype=torch.int64)
            for x1, y1, x2, y2 in tiles.tolist():
                assert (x2 - x1, y2 - y1) == (min(side, size[1]), min(side, size[0]))
                seen[y1:y2, x1:x2] += 1
            assert int(seen.min()) >= 1
            for axis in (0, 1):
                starts = sorted(set(tiles[:, axis].tolist()))
                steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
                assert all(step <= math.ceil(side * (1 - overlap)) for step in steps)
            least = Tiling(side, overlap, scale=1.0)
            assert least.boxes(size).shape == tiles.shape and all(
                small <= large
                for small, large in zip(least.tile_size(size), Tiling(side, overlap).tile_size(size), strict=True)
            )


def test_tiles_are_seen_at_the_scale_of_training_with_room_for_their_objects():
    model = tiny_model()
    own = model.config.min_size[-1]
    content = {"smallest_scale": 0.5}
    tiling = tiling_of("auto", 0.25, 0.0, model.config, content)
    assert (tiling.side, tiling.scale) == (2 * 8 * own, 0.5)
    assert tiling_of(2 * own, 0.25, 0.0, model.config, content).scale is None  # as large as the largest of training
    assert tiling_of(2 * own + 2, 0.25, 0.0, model.config, {}).scale is None
    tiled = TiledModel(model, tiling)
    assert tiled.config.box_detections_per_img == 64 * model.config.box_detections_per_img
    assert tiled.model.roi_heads.box_predictor.cls_score.weight is model.roi_heads.box_predictor.cls_score.weight
    seen = []
    tiled.model.transform.batch = lambda images, *_: seen.append(images[0].shape) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        tiled([torch.rand(3, tiling.side + 64, 40)])
    assert seen == [(3, *tiling.tile_size((tiling.side + 64, 40)))]
    assert tiled.config.min_size == (20,) and tiled.config.max_size == seen[0][1] / 2
    assert tiled.config.rpn_post_nms_top_n_test == round(20 * seen[0][1] / 2 * 20 / own**2) > 20  # as large as it is
    assert model.config.min_size[-1] == own


def test_tiles_of_an_exported_file_are_as_large_as_training_images():
    config = tiny_model().config
    about = describe(config, LabelMap.from_categories(NAMES), {"smallest_scale": 0.5}, None)
    file = ExportedModel(lambda *_: [], json.loads(json.dumps(about)))
    assert LookingOptions(tile="auto").looking(file, file.content).tiling == Tiling(2 * config.min_size[-1])


def found_in(boxes: list[list[int]], labels: list[int], scores: list[float], size: tuple[int, int]) -> dict:
    """Returns detections whose masks fill their boxes."""
    crops = [torch.ones(y2 - y1, x2 - x1) for x1, y1, x2, y2 in boxes]
    corners = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    masks = CroppedMasks.from_crops(crops, corners, size)
    return {"boxes": corners.float(), "labels": torch.tensor(labels), "scores": torch.tensor(scores), "masks": masks}


def test_parts_of_two_classes_become_the_surer_one_and_whole_objects_of_two_classes_stay():
    tiles = torch.tensor([[0, 0, 60, 50], [40, 0, 100, 50]])
    left = found_in([[20, 10, 60, 20], [44, 30, 54, 40]], [1, 1], [0.6, 0.9], (50, 60))
    right = found_in([[0, 10, 40, 20], [4, 30, 14, 40]], [2, 2], [0.8, 0.7], (50, 60))
    result = joined([left, right], tiles, (50, 100))
    assert list(zip(result["labels"].tolist(), result["boxes"].tolist(), strict=True)) == [
        (1, [44, 30, 54, 40]),
        (2, [20, 10, 80, 20]),
        (2, [44, 30, 54, 40]),
    ]


@pytest.mark.parametrize(
    ("t", "boxes", "needed"),
    [
        (0, [[20, 10, 41, 20], [5, 5, 40, 30], [5, 5, 30, 30]], [True, False, True]),
        (1, [[19, 0, 40, 9], [20, 0, 40, 9], [1, 1, 2, 2]], [True, False, True]),
    ],
)
def test_what_reaches_into_another_tile_needs_a_mask_whatever_its_score(t, boxes, needed):
    tiles, seen = torch.tensor([[0, 0, 60, 50], [40, 0, 100, 50]]), []
    found = {"boxes": torch.tensor(boxes).float(), "scores": torch.tensor([0.3, 0.3, 0.9])}
    in_tile = needed_in(lambda found: seen.append(found["boxes"]) or found["scores"] > 0.5, tiles, t, found)
    assert in_tile.tolist() == needed
    assert torch.equal(seen[0], found["boxes"] + torch.tensor([40 * t, 0] * 2))  # in the image


@pytest.mark.parametrize(("left", "right"), [(30, 67), (26, 66), (30, 70)])
def test_an_object_in_two_pieces_is_not_the_piece_that_a_tile_has_alone(left, right):
    """A tile that ends in the gap has one piece, which no border cuts, farther from its border than the whole is."""
    tiles, masks = torch.tensor([[0, 0, 60, 50], [20, 0, 80, 50], [40, 0, 100, 50]]), torch.zeros(1, 50, 100)
    masks[0, 10:20, left : left + 20] = masks[0, 10:20, right : right + 8] = 1
    masks, one = masks.to(torch.uint8), torch.ones(1)
    result = joined(seen_in_tiles(masks, one.long(), one, tiles), tiles, (50, 100))
    whole = CroppedMasks.from_masks(masks)
    assert by_object(result) == by_object({"boxes": whole.boxes.float(), "labels": one.long(), "masks": whole})


def test_two_objects_of_a_tile_are_never_joined():
    tiles = torch.tensor([[0, 0, 60, 50], [40, 0, 100, 50]])
    left = found_in([[30, 10, 60, 20], [30, 12, 60, 22]], [1, 1], [0.9, 0.8], (50, 60))
    right = found_in([[0, 11, 30, 21]], [1], [0.7], (50, 60))
    result = joined([left, right], tiles, (50, 100))
    assert result["boxes"].tolist() == [[30, 10, 70, 21], [30, 12, 60, 22]]


def test_compact_masks_are_the_masks_that_they_stand_for():
    masks = CroppedMasks.from_masks(torch.cat((ellipses(5, seed=1), torch.zeros(1, *SIZE, dtype=torch.uint8))))
    compact = CompactMasks.of(masks)
    assert sum(map(len, compact.counts)) < len(masks.pixels) / 10 and compact.to("cpu") is compact
    for some in (slice(None), [3, 5, 0], [], torch.tensor([True, False] * 3)):
        one, other = masks[some], compact[some]
        assert isinstance(other, CompactMasks) and torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.areas(), other.areas())
        assert torch.equal(one.to_masks(), other.to_masks()) and encode_cropped(one) == encode_cropped(other)
        for changed in (lambda m: m.resize((70, 61)), lambda m: m.window(20, 30, 90, 80), lambda m: m.hflip()):
            assert torch.equal(changed(one).to_masks(), changed(other).to_masks())
    assert torch.equal(pickle.loads(pickle.dumps(compact)).crops()[-2], masks.crops()[-2])


def test_no_detection_in_any_tile():
    tiles = Tiling(64).boxes((100, 100))
    nothing = found_in([], [], [], (64, 64))
    result = joined([nothing] * len(tiles), tiles, (100, 100))
    assert len(result["scores"]) == len(result["masks"]) == 0
    assert result["boxes"].shape == (0, 4)


def test_an_empty_tile_has_one_value_in_each_channel():
    flat = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    speck = flat.clone()
    speck[1, 5, 5] = 190
    assert Tiling(64).is_empty(flat)
    assert not Tiling(64).is_empty(speck)
    assert Tiling(64, empty=10).is_empty(speck)
    assert Tiling(64, empty=10).is_empty(speck / 255)
    assert not Tiling(64, empty=-1).is_empty(flat)
    assert Tiling(64).is_empty(flat.to(torch.uint16)) and not Tiling(64).is_empty(speck.to(torch.uint16))


@pytest.mark.parametrize(
    ("words", "said"), [({"side": 8}, "--tile 8"), ({"side": 64, "overlap": 0.7}, "--overlap 0.7")]
)
def test_a_tiling_that_cannot_be_is_named(words, said):
    with pytest.raises(InputError, match=said):
        Tiling(**words)


def mosaic(folder):
    """Writes an image of four of the tiny model's, and returns its path."""
    parts = [np.array(Image.open(path).resize((96, 96))) for path in write_images(folder / "parts")[:2]]
    path = folder / "large.png"
    Image.fromarray(np.concatenate([np.concatenate(parts, 1), np.concatenate(parts[::-1], 1)])).save(path)
    return path


def test_predict_and_the_detector_join_tiles_alike(tmp_path, monkeypatch, command):
    weights, path = write_checkpoint(tmp_path / "model.pth"), mosaic(tmp_path)
    monkeypatch.chdir(tmp_path)
    given_back = []  # after the 4th and the 8th of 9 tiles, and after the joining
    monkeypatch.setattr(tiled_model, "GIVEN_BACK", 4)
    monkeypatch.setattr(tiled_model, "give_back_freed_memory", lambda: given_back.append(1))
    shared = ("--weights-path", weights, "--device", "cpu", "--score", 0.3)
    status, out, err = command(predict, *shared, "--img-path", path, "--tile", 96, "--overlap", 0.25)
    assert status == 0, err
    results = json.loads((tmp_path / "test_result.json").read_text())
    found = maskrcnn.load(weights)(path, score=0.3, tile=96, overlap=0.25)
    assert results and [result["score"] for result in results] == found.scores.tolist()
    assert [result["segmentation"] for result in results] == found.rle()
    assert found.masks[0].shape == (192, 192) and len(found.polygons()) == len(found)
    assert len(given_back) == 2 * 3

    one = write_images(tmp_path / "one")[0]
    detector = maskrcnn.load(weights)
    assert torch.equal(detector(one, tile=500).scores, detector(one).scores)  # one tile is the image

    words = ("--overlap", 0.3, "--tile-empty", -1, "--every", 2)
    said = command(predict, *shared, "--img-path", one, *words)[1]
    assert "--overlap --tile-empty: without effect, there is no --tile\n" in said
    assert "--every 2: without effect, there is no video\n" in said
    with pytest.warns(UserWarning, match="^overlap: without effect, there is no tile"):
        detector(one, overlap=0.3)
    assert command(predict, *shared, "--img-path", path, "--tile", "large")[0] == 2
    bare = tmp_path / "bare.pth"
    torch.save(detector.model.state_dict(), bare)
    words = ("--weights-path", bare, "--num-classes", len(NAMES), "--img-path", path)
    status, _, err = command(predict, *words, "--device", "cpu", "--tile", "auto")
    assert status == 2 and "--tile auto: these weights do not say" in err


def test_a_large_image_is_drawn_as_an_overview_and_its_fullest_tiles(tmp_path, monkeypatch, command):
    weights, path = write_checkpoint(tmp_path / "model.pth"), mosaic(tmp_path)
    monkeypatch.chdir(tmp_path)
    for module in (drawn_images, large_drawings):
        monkeypatch.setattr(module, "OVERVIEW", 100)
    (tmp_path / "test_result_tiles").mkdir()
    (tmp_path / "test_result_tiles" / "x7_y7.jpg").touch()  # of an earlier call
    words = ("--weights-path", weights, "--device", "cpu", "--img-path", path, "--tile", 96, "--overlap", 0)
    status, out, err = command(predict, *words, "--magnify", 1)
    assert status == 0, err
    assert Image.open("test_result.jpg").size == (100, 100)
    drawn = {file.name: Image.open(file) for file in (tmp_path / "test_result_tiles").iterdir()}
    assert drawn and {*drawn} <= {f"x{x}_y{y}.jpg" for x in (0, 96) for y in (0, 96)}
    assert all(image.size == (96, 96) for image in drawn.values())
    assert f"an overview; the fullest {len(drawn)} of 4 tiles at full size in test_result_tiles" in out
    assert "drawn smaller" not in out
    whole = np.array(Image.open(path))
    for name, image in drawn.items():
        x, y = (int(part[1:]) for part in name.removesuffix(".jpg").split("_"))
        assert np.abs(np.array(image).astype(int) - whole[y : y + 96, x : x + 96]).mean() < 60  # the tile's own pixels


def test_without_a_detection_no_tile_is_drawn_at_full_size(tmp_path):
    predictor = SimpleNamespace(tiled=SimpleNamespace(tiling=Tiling(64, 0.0)))
    image, found = torch.zeros(3, 64, 192), {"boxes": torch.zeros(0, 4)}
    said = large_drawings.draw_parts(predictor, found, image, None, None, tmp_path / "a.jpg")
    assert said == "an overview, without a tile at full size, as none has a detection"


def test_a_tile_is_drawn_without_objects_of_which_it_has_a_part_of_the_box_alone():
    crops = [torch.ones(20, 20), torch.zeros(5, 5), torch.ones(30, 30)]
    corners = torch.tensor([[40, 40, 0, 0], [80, 80, 0, 0], [50, 50, 0, 0]])
    masks = CroppedMasks.from_crops(crops, corners, (128, 128))
    boxes = torch.tensor([[40.0, 40, 100, 100], [80, 80, 85, 85], [50, 50, 80, 80]])
    found, drawn = {"boxes": boxes, "labels": torch.arange(3), "scores": torch.ones(3)}, []
    predictor = SimpleNamespace(draw=lambda found, *rest: drawn.append(found) or (None, False))
    where = [place for place, _ in large_drawings.parts(
        predictor, found, torch.zeros(3, 128, 128), None, masks, Tiling(64, 0.0)
    )]  # fmt: skip
    assert where == [(64, 64)] and drawn[0]["labels"].tolist() == [1, 2]
    assert drawn[0]["boxes"].tolist() == [[16, 16, 21, 21], [0, 0, 16, 16]]
    assert drawn[0]["masks"].areas().tolist() == [0, 256]


def test_the_fullest_tiles_are_those_with_most_detections():
    tiles = Tiling(64, 0.0).boxes((64, 192))
    boxes = torch.tensor([[70.0, 0, 80, 10], [60, 20, 70, 30], [75, 40, 85, 50], [5, 5, 9, 9]])
    assert tiles[:, 0].tolist() == [0, 64, 128]
    assert large_drawings.fullest(tiles, boxes) == [1, 0]
    assert large_drawings.fullest(tiles, boxes, 1) == [1]


def test_the_benchmark_counts_what_ends_at_a_tiles_border():
    tiling, one = Tiling(64, 0.0), torch.tensor([1])
    found = Found(torch.tensor([[40.0, 10, 64, 20]]), one)
    for right, label, expected in ((80.0, 1, 1), (66.0, 1, 0), (80.0, 2, 0)):
        whole = Found(torch.tensor([[40.0, 10, right, 20]]), label * one)
        assert cut(found, whole, tiling, (64, 128)) == expected
    inside = Found(torch.tensor([[40.0, 10, 55, 20]]), one)
    assert cut(inside, Found(torch.tensor([[40.0, 10, 80, 20]]), one), tiling, (64, 128)) == 0


def test_the_benchmark_tells_what_detections_are():
    truth = Truth(torch.tensor([[0.0, 0, 20, 20], [15, 0, 35, 20]]), torch.tensor([[60.0, 60, 99, 99]]))
    boxes = [[1.0, 0, 21, 20], [0, 0, 20, 21], [15, 0, 36, 20], [50, 60, 70, 70], [2, 2, 9, 9], [40, 60, 70, 70]]
    found = Found(torch.tensor(boxes), torch.ones(6))
    expected = {"of objects": 2, "of one again": 1, "in crowd regions": 1, "within an object": 1, "elsewhere": 1}
    assert kinds_of(found, truth) == expected
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, 4))
    assert kinds_of(found, nothing) == {"elsewhere": 6} and not kinds_of(Found(*(t[:0] for t in found)), truth)


def test_validation_by_tiles_counts_full_ones_and_scores_borders(tmp_path, monkeypatch, command):
    data, weights = write_coco(tmp_path / "data"), write_checkpoint(tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    words = ("--weights-path", weights, "--data-path", data, "--device", "cpu", "--boundary")
    status, out, err = command(validation, *words, "--tile", 48)
    assert status == 0, err
    record = json.loads((tmp_path / "record_mAP.json").read_text())
    assert set(record) == {"bbox", "segm", "boundary", "about"}
    assert record["boundary"]["stats"]["AP"] <= record["segm"]["stats"]["AP"]
    assert "loss" not in out.splitlines()[-2] and "IoU type: boundary" in out
    full = record["about"]["limits"]["full_images"]["images"]
    assert full and f"{counted(full, 'tile', 'have')} 40 detections, all that --box-detections-per-img allows" in out


def test_tiles_that_are_left_out_as_empty_are_counted(tmp_path, monkeypatch, command):
    pixels = np.full((96, 192, 3), 7, np.uint8)
    pixels[:, :96] = np.random.default_rng(0).integers(0, 256, (96, 96, 3))
    Image.fromarray(pixels).save(tmp_path / "half.png")
    monkeypatch.chdir(tmp_path)
    weights = write_checkpoint(tmp_path / "model.pth")
    words = ("--weights-path", weights, "--device", "cpu", "--img-path", "half.png", "--tile", 96, "--overlap", 0)
    assert "left out: 1 of 2 tiles, of one colour (--tile-empty 0)" in command(predict, *words)[1]
    assert "left out" not in command(predict, *words, "--tile-empty", -1, "--score", 0)[1]
