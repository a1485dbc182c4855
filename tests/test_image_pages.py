"""Pages of files as images of their own (stack.tif#3): data, training, validation, prediction, packing, conversion."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn
import predict
import train
import validation
from backbone.errors import InputError
from tests.coco_folders import annotation, coco, write
from tests.small_runs import call
from tests.tiny_model import train_flags
from tools import check_data, coco_to_npy, npy_to_coco, pack_dataset
from train_utils.data.images import ImageError, image_size, page_count, read_image
from train_utils.data.images.pages import page_of, stem_of
from train_utils.data.opening import open_data

PAGES = 3


def save_stack(path, pages):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *more = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=more)


def stacks(root, dtype=np.uint8):
    """Two stacks of images, and of masks with one object on the first page, two on the second, none on the third."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        masks = np.zeros((PAGES, 40, 48), np.uint8)
        masks[:2, 5:20, 6:24], masks[1, 22:36, 20:44] = 3, 9
        images = rng.integers(0, 60, masks.shape) + 150 * (masks > 0) + 10 * np.arange(PAGES)[:, None, None]
        save_stack(root / split / "images" / "stack.tif", images.astype(dtype))
        save_stack(root / split / "masks" / "stack.tif", masks)
    return root


def pages_in(image):
    for page in range(image.n_frames):
        image.seek(page)
        yield np.array(image)


def test_names():
    assert page_of("a/stack.tif#3") == ("a/stack.tif", 3) and stem_of("a/stack.tif#3") == "stack#3"
    for name in ("a#3/b.png", "stack#3", "a.tif#x", "a.tif"):
        assert page_of(name) == (name, None)


def test_a_file_of_that_name_comes_first(tmp_path):
    path = tmp_path / "a.png#1"
    Image.new("RGB", (5, 4)).save(path, "PNG")
    assert page_of(path) == (str(path), None) and read_image(path).shape == (3, 4, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_and_images_of_each_page(tmp_path, dtype):
    data = open_data(stacks(tmp_path, dtype), "train").train
    folder = tmp_path / "train"
    assert [data.file_name(i) for i in range(PAGES)] == [f"{folder}/images/stack.tif#{i}" for i in range(PAGES)]
    assert [data.given_id(i) for i in range(PAGES)] == ["stack#0", "stack#1", "stack#2"]
    assert "3 images are pages of 1 file, such as train/images/stack.tif#0" in data.describe()
    with Image.open(folder / "images" / "stack.tif") as images, Image.open(folder / "masks" / "stack.tif") as masks:
        for i, (values, mask) in enumerate(zip(pages_in(images), pages_in(masks), strict=True)):
            image, target = data[i]
            expected = values / (1 if dtype == np.uint8 else np.float32(65535))
            assert (image.numpy() == expected.astype(image.numpy().dtype)).all() and len(image) == 3
            found = target["masks"].to_masks().numpy().astype(bool)
            assert (found == np.array([mask == v for v in np.unique(mask[mask > 0])]).reshape(-1, 40, 48)).all()


def test_mistakes(tmp_path):
    folder = stacks(tmp_path) / "train"
    with Image.open(folder / "masks" / "stack.tif") as masks:
        save_stack(folder / "masks" / "stack.tif", list(pages_in(masks))[:2])
    with pytest.raises(
        InputError, match=r"masks/stack.tif: holds 2 pages, but train/images/stack.tif has 3; a mask has"
    ):
        open_data(tmp_path, "train")
    with pytest.raises(ImageError, match=r"stack.tif#7: cannot be decoded: it has 3 pages, which count from 0, and no"):
        read_image(f"{folder}/images/stack.tif#7")
    with pytest.raises(ImageError, match="no such file"):
        read_image(f"{folder}/images/other.tif#0")


def test_a_json_that_names_pages(tmp_path):
    """Its names are those of pages; a link out of the data stays refused; conversion keeps pages."""
    data = tmp_path / "data"
    images = [{"id": i, "file_name": f"stack.tif#{i}", "height": 20, "width": 30} for i in range(3)]
    (data / "images").mkdir(parents=True)
    (data / "instances.json").write_text(json.dumps(coco(images, [annotation(1, 1)])))
    pages = [np.full((20, 30), 50 * i, np.uint8) for i in range(3)]
    save_stack(data / "images" / "stack.tif", pages)
    part = open_data(data, "train", val_fraction=0).train
    assert not part.missing.any() and [int(part.image(i)[0, 0, 0]) for i in range(3)] == [0, 50, 100]
    assert call(npy_to_coco, data, tmp_path / "again", "--dataset", "coco") == 0
    again = open_data(tmp_path / "again", "train", val_fraction=0).train
    assert [int(again.image(i)[0, 0, 0]) for i in range(3)] == [0, 50, 100]
    assert os.listdir(tmp_path / "again" / "images") == ["stack.tif"]
    assert call(coco_to_npy, data, tmp_path / "npy") == 2
    shutil.move(data / "images" / "stack.tif", tmp_path / "outside.tif")
    (data / "images" / "stack.tif").symlink_to(tmp_path / "outside.tif")
    with pytest.raises(InputError, match="stack.tif"):
        open_data(data, "train")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_packed_pages(tmp_path, dtype):
    assert call(pack_dataset, stacks(tmp_path / "data", dtype), tmp_path / "packed") == 0
    assert call(pack_dataset, tmp_path / "data", tmp_path / "encoded", "--keep-encoded") == 0
    one = open_data(tmp_path / "data").train
    for two in (open_data(tmp_path / "packed").train, open_data(tmp_path / "encoded").train):
        for i in range(PAGES):
            assert torch.equal(one.image(i), two.image(i)) and two.given_id(i) == f"stack#{i}"


def test_a_run(tmp_path, capsys):
    """Training, the doctor, validation and prediction see each page as an image, and name it."""
    data, run = stacks(tmp_path / "data"), tmp_path / "run"
    words = ("--data-path", data, *train_flags(epochs=1), "--output-dir", run)
    assert call(train, *words, "--pages", "channels") == 2
    assert "leave the flag out" in capsys.readouterr().err
    assert call(train, *words, "--pages", "each") == 0
    assert call(check_data, data, "--output-dir", tmp_path / "doctor") == 0
    assert call(validation, "--weights-path", run / "model_0.pth", "--output-dir", tmp_path / "val") == 0
    assert json.loads((tmp_path / "val" / "record_mAP.json").read_text())["about"]["images"] == 3
    stack = data / "val" / "images" / "stack.tif"
    words = ("--weights-path", run / "model_0.pth", "--output-dir", tmp_path, "--score", 0)
    assert call(predict, *words, "--img-path", stack, "--order", "uncertain") == 0
    results = json.loads((tmp_path / "test_result.json").read_text())
    assert {(r["image_id"], r["file_name"], r["page"]) for r in results} == {
        (i + 1, f"{stack}#{i}", i) for i in range(3)
    }
    assert sorted(os.listdir(tmp_path / "test_result")) == [f"stack#{i}.jpg" for i in range(3)]
    assert f"{stack}#2\n" in (tmp_path / "test_result_order.txt").read_text()
    assert call(predict, *words, "--img-path", f"{stack}#1") == 0
    (alone,) = {
        (r["image_id"], r["file_name"], r["page"]) for r in json.loads((tmp_path / "test_result.json").read_text())
    }
    assert alone == (1, f"{stack}#1", 1)
    found = maskrcnn.load(run / "model_0.pth")(str(stack), score=0)
    assert [one.source for one in found] == [f"{stack}#{i}" for i in range(3)]


def test_pages_that_nothing_annotates(tmp_path, capsys):
    """A file of several pages that is annotated as one image is refused where each page is to be one."""
    data = tmp_path / "data"
    write(
        data, coco([{"id": i, "file_name": f"{i}.tif", "height": 20, "width": 30} for i in (1, 2)], [annotation(1, 1)])
    )
    for i in (1, 2):
        save_stack(data / "images" / f"{i}.tif", [np.zeros((20, 30), np.uint8)] * 2)
    assert page_count(data / "images" / "1.tif") == 2 and image_size(f"{data}/images/1.tif#1") == (20, 30)
    assert (
        call(train, "--data-path", data, *train_flags(epochs=1), "--output-dir", tmp_path / "r", "--pages", "each") == 2
    )
    assert "has 2 pages, and is annotated as one image; name pages in a json (" in capsys.readouterr().err
