"""Training on tiles of large images: what is cut, what an epoch has of it, and a run from start to prediction."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
import train
import validation
from backbone.errors import InputError
from maskrcnn import load
from network_files.operators.cropped_masks import CroppedMasks
from tests.coco_folders import annotation, coco, write
from tests.small_runs import call, differences, flags
from tests.tiny_model import tiny_model
from tools.doctor.report import writing
from tools.doctor.report.found import Report
from tools.doctor.report.options import Options
from tools.doctor.report.summary import data_lines
from tools.visualise_stages import StageOptions, sample_of_data
from train_utils.checkpoints.checkpoint import load_file
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.images import windows
from train_utils.data.labels import LabelMap
from train_utils.data.loaders import EvalLoader, TrainLoader
from train_utils.data.masks import some_crops
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions
from train_utils.data.tiles.cutting import Tiles, cut_target
from train_utils.data.tiles.tiling import Tiling
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.prediction.looking import tiling_of
from train_utils.processes.distributed import World
from train_utils.run.evaluation import evaluate


def squares(*corners_and_sides: tuple[int, int, int]) -> list[dict]:
    return [
        annotation(
            i,
            segmentation=[[x, y, x + side, y, x + side, y + side, x, y + side]],
            bbox=[x, y, side, side],
            area=side**2,
        )
        for i, (x, y, side) in enumerate(corners_and_sides, start=1)
    ]


@pytest.fixture
def large(tmp_path) -> ImageDataset:
    """One image of 100 x 200 (H, W), in 2 x 4 tiles of 64 pixels: five squares, some of which borders cut."""
    images = [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}]
    corners = [(10, 10, 20), (50, 10, 10), (40, 28, 20), (57, 60, 20), (1, 70, 8)]
    write(tmp_path, coco(images, squares(*corners)), "instances_train.json")
    write(tmp_path, coco(images, squares(*corners)), "instances_val.json")
    return open_data(tmp_path).train


def test_what_tiles_show_of_an_object_is_all_of_it_and_small_parts_are_ignored(large):
    whole = large.target(0)
    windows = Tiling(64, 0.0).boxes((100, 200)).tolist()
    assert windows[0] == [0, 0, 64, 64] and windows[1][0] == 45
    seen = torch.zeros(5, 100, 200, dtype=torch.uint8)
    for x1, y1, x2, y2 in windows:
        cut = cut_target(whole, (x1, y1, x2, y2))
        masks = cut["masks"].to_masks()
        assert len(masks) == int(whole["masks"].to_masks()[:, y1:y2, x1:x2].flatten(1).any(1).sum())
        tight = CroppedMasks.from_masks(masks)
        assert torch.equal(cut["boxes"], tight.boxes.float()) and torch.equal(cut["area"], tight.areas().float())
        for mask, area, crowd in zip(masks, cut["area"].tolist(), cut["iscrowd"].tolist(), strict=True):
            full = torch.zeros(100, 200, dtype=torch.uint8)
            full[y1:y2, x1:x2] = mask
            (own,) = (k for k, one in enumerate(whole["masks"].to_masks()) if not (full > one).any() and full.any())
            seen[own] |= full
            assert crowd == (area < 0.25 * float(whole["area"][own]))
    assert torch.equal(seen, whole["masks"].to_masks())


def test_a_set_of_tiles_has_the_targets_counts_and_sizes_of_its_windows(large, monkeypatch):
    tiles = Tiles(large, Tiling(64, 0.0), 0.5)
    image = large.image(0)
    for i, (x1, y1, x2, y2) in enumerate(Tiling(64, 0.0).boxes((100, 200)).tolist()):
        tile, target = tiles[i]
        assert torch.equal(tile, image[:, y1:y2, x1:x2]) and tiles.sizes[i].tolist() == [64, 64]
        assert tiles.object_counts()[i] == int((target["iscrowd"] == 0).sum())
        assert tiles.object_counts(crowd=True)[i] == int((target["iscrowd"] == 1).sum())
        assert len(tiles.annotations.masks.crops(i, tiles.annotations.objects(i), (64, 64))) == len(target["boxes"])
    own = tiles.object_counts() > 0
    assert own.any() and (tiles.factors[own] == 1).all()
    assert tiles.factors[~own].sum() == pytest.approx(0.5 * own.sum())
    one = Tiles(large, Tiling(200), 0.5)
    assert len(one) == 1 and torch.equal(one.target(0)["boxes"], large.target(0)["boxes"])  # a tile that is the image
    in_parts, read = [], windows.Windows.window
    monkeypatch.setattr(windows, "LARGE", 100)
    monkeypatch.setattr(windows.Windows, "window", lambda *place: in_parts.append(read(*place)) or in_parts[-1])
    assert torch.equal(tiles.image(1), image[:, :64, 45:109]) and in_parts[0].shape == (3, 64, 64)
    assert "1 image cut into 8 tiles of at most 64x64 pixels (--tile)" in tiles.describe_cut()
    assert f"{int((tiles.annotations.iscrowd == 1).sum())} of which are less than 25%" in tiles.describe_cut()


def test_tiles_show_an_object_whose_box_is_smaller_than_its_mask(tmp_path, monkeypatch, capsys):
    """Of polygons and of RLEs; the boxes of others stay as annotated. A terminal sees a bar meanwhile."""
    images = [{"id": i, "file_name": "a.png", "height": 100, "width": 200} for i in (1, 2)]
    objects = squares((10, 10, 20), (5, 5, 90), (100, 40, 50))
    objects[1] |= {"bbox": [10, 10, 20, 20]}
    objects[2] |= {"bbox": [100.4, 40, 49.6, 50]}
    rle = {"size": [100, 200], "counts": [100 * 20, 100 * 150, 100 * 30]}
    objects += [annotation(4, 2, segmentation=rle, bbox=[20, 0, 30, 100], area=15000)]
    write(tmp_path, coco(images, objects), "instances_train.json")
    write(tmp_path, coco(images, objects), "instances_val.json")
    whole = open_data(tmp_path).train
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tiles = Tiles(whole, Tiling(64, 0.0), 0.5)
    assert "masks in tiles" in capsys.readouterr().err
    for i in range(len(tiles)):
        image, (x1, y1, x2, y2) = tiles.place(i), tiles.window(i)
        masks = whole.target(image)["masks"].to_masks()[:, y1:y2, x1:x2]
        assert len(tiles.target(i)["labels"]) == int(masks.any(2).any(1).sum())
    assert "; the boxes of 2 objects do not hold their masks, by which tiles go instead; " in tiles.describe_cut()
    assert torch.equal(whole.target(0)["boxes"][2], torch.tensor([100.4, 40, 150, 90]))


def test_some_masks_of_a_source_that_gives_all_are_those_asked_for(large):
    source, numbers = large.annotations.masks, np.array([1, 3])
    of_all = SimpleNamespace(crops=source.crops)  # as most formats have it
    one, two = (some_crops(masks, 0, slice(0, 5), numbers, (100, 200)) for masks in (source, of_all))
    assert torch.equal(one.to_masks(), two.to_masks()) and torch.equal(
        one.boxes, large.target(0)["masks"].boxes[[1, 3]]
    )


def test_an_epoch_has_each_tile_with_objects_and_others_in_proportion_alike_for_any_workers(large):
    tiles = Tiles(large, Tiling(64, 0.25), 0.5)
    own = int((tiles.object_counts() > 0).sum())

    def epochs(workers: int) -> list[list]:
        loader = TrainLoader(tiles, None, World.single("cpu"), LoaderOptions(workers=workers, seed=3))
        assert loader.samples == own + own // 2
        return [[(b.indices, b.images[0], b.targets[0]) for b in loader.epoch(epoch)] for epoch in (0, 1)]

    one, two = epochs(0), epochs(1)
    for first, second in zip(one, two, strict=True):
        assert [entry[0] for entry in first] == [entry[0] for entry in second]
        assert all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
        assert all(torch.equal(a[2]["boxes"], b[2]["boxes"]) for a, b in zip(first, second, strict=True))
        assert {i for i, _, _ in first for i in i if tiles.object_counts()[i]} == set(
            np.flatnonzero(tiles.object_counts()).tolist()
        )
    moved = [{entry[0][0]: entry[2]["boxes"].tolist() for entry in epoch} for epoch in one]
    assert any(moved[0][i] != moved[1][i] for i in moved[0].keys() & moved[1].keys())


def test_an_image_whose_tiles_are_all_empty_has_no_part_in_the_mean_loss(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 80} for i in (1, 2)]
    write(tmp_path, coco(images, squares((10, 10, 20))))
    noise = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "1.png")  # 2 is grey all over
    both = open_data(tmp_path, "val", val_fraction=1.0).val
    model, world = TiledModel(tiny_model(), Tiling(48, scale=1.0), losses=True), World(0, 1, 0, torch.device("cpu"))
    losses = []
    for data in (both, both.subset([0])):
        loader = EvalLoader(data, world, LoaderOptions(), model.config)
        losses.append(evaluate(model, loader, data, world).losses)
    assert losses[0] == losses[1] and losses[0]["loss_mask"] > 0


def test_a_run_on_tiles_resumes_bit_for_bit_and_its_checkpoint_remembers_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = make_shapes(tmp_path / "shapes", train=1, val=1, size=100)
    assert call(train, *flags(data, "run", "--tile", 64, "--overlap", 0.25)) == 0
    out = capsys.readouterr().out
    assert "train: 1 image cut into 4 tiles of at most 64x64 pixels (--tile)" in out
    assert "val: images are looked at in such tiles" in out

    drawn, overview = [], windows.Windows.overview
    monkeypatch.setattr(windows.Windows, "overview", lambda *given: drawn.append(given[0]) or overview(*given))
    monkeypatch.setattr(windows, "LARGE", 100)  # images are read in parts, those of validation too
    assert call(train, "--resume", "run/model_0.pth", "--output-dir", "again", "--device", "cpu") == 0
    assert {image.shape for image in drawn} == {(3, 100, 100)}  # for TensorBoard
    assert {*differences(tmp_path / "run", tmp_path / "again")} <= {"det_results*.txt", "seg_results*.txt"}
    assert call(train, "--resume", "run/model_0.pth", "--output-dir", "other", "--tile", 50, "--device", "cpu") == 2
    assert "--tile 50 was 64 before" in capsys.readouterr().err

    row = json.loads(next((tmp_path / "run").glob("seg_results*.json")).read_text())[-1]
    words = ("--data-path", data, "--weights-path", "run/model_1.pth", "--tile", "auto", "--device", "cpu")
    assert call(validation, *words) == 0
    assert json.loads((tmp_path / "record_mAP.json").read_text())["segm"]["stats"]["AP"] == row["AP"]
    assert row["val_losses"]["loss_mask"] > 0

    content = load_file(tmp_path / "run" / "model_1.pth")
    assert tiling_of("auto", None, 0.0, load("run/model_1.pth").model.config, content) == Tiling(64, 0.25)
    options, given = StageOptions("run/model_1.pth", index=3), {"data_path": str(data), "weights_path": "w"}
    sample = sample_of_data(options, given, content, LabelMap.from_dict(content["label_map"]))
    assert sample.before[0].shape == (3, 64, 64) and "tiles of at most 64 pixels" in sample.lead[1]


def test_the_doctor_looks_at_tiles(tmp_path):
    data = make_shapes(tmp_path / "shapes", train=1, val=1, size=100)
    report = Report(Options(str(data), tile=64, samples=4, model={"min_size": (64,), "max_size": 64}))
    report.look()
    assert any(line.startswith("train: 1 image cut into 4 tiles") for line in data_lines(report))
    assert len(report.seen["train"].sizes) == 4 and len(report.tables["train"].sizes) == 1
    assert "64" in str(report.sizes) and "100" not in str(report.sizes)
    advice = writing.write(report, tmp_path / "out")
    assert any("--tile 64" in line for line in advice if line.startswith("train with"))
    assert (tmp_path / "out" / "check_data.html").read_text().count("<figure") >= 4


def test_a_torch_data_set_cuts_its_own_tiles(samples):
    with pytest.raises(InputError, match="of a torch Dataset give tiles, or leave tile out"):
        maskrcnn.train(Pairs(samples), tile=64, device="cpu")


class Pairs(torch.utils.data.Dataset):
    """Pairs of image and target."""

    def __init__(self, samples: list) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple:
        return self.samples[i]
