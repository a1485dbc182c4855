"""File names that are no files as given: the file that is meant, and no other; never one outside the data."""

import json
import re
import unicodedata

import pytest

from backbone.errors import InputError
from tests.coco_folders import annotation, coco, write_image
from tests.npy_folders import add, rectangles
from tests.test_dataset_voc import DOG, Maker
from tools import check_data
from train_utils.data.opening import open_data

ACCENTED = "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"


def make(folder, names, files, sized=True):
    """A json of these file names, 20 x 30 each with a square, and files of them; returns the json."""
    images = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names, 1)]
    content = coco(images, [annotation(i, i) for i in range(1, len(names) + 1)])
    for image in [] if sized else images:
        del image["height"], image["width"]
    for file in files:
        write_image(folder / file, value=10 + len(file))
    path = folder / "some.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def opened(path, **options):
    return open_data(path, "val", val_fraction=1.0, **options).val


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\a.png", "images/a.png"),
        ("C:\\data\\export\\a.png", "images/a.png"),
        ("\\\\server\\share\\a.png", "images/a.png"),
        ("..\\..\\label-studio\\media\\upload\\4\\a.png", "images/a.png"),
        ("/data/export/a.png", "images/a.png"),
        ("export/a.png", "images/a.png"),
        ("/data/export/train/a.png", "images/train/a.png"),
        ("A.PNG", "images/a.png"),
        ("a.jpg", "images/a.JPG"),
        ("Train/a.png", "train/a.png"),
        (unicodedata.normalize("NFD", ACCENTED), f"images/{unicodedata.normalize('NFC', ACCENTED)}"),
        (unicodedata.normalize("NFC", ACCENTED), f"images/{unicodedata.normalize('NFD', ACCENTED)}"),
    ],
)
def test_the_file_that_is_meant_is_found_and_said(tmp_path, name, file, sized):
    names = [name, name.replace("a.", "b.").replace("A.", "B.").replace("caf", "cof")]
    files = [file, file.replace("a.", "b.").replace("caf", "cof")]
    data = opened(make(tmp_path, names, files, sized))
    assert [data.file_name(i) for i in range(2)] == [str(tmp_path / one) for one in files]
    assert data[0][0].shape == (3, 20, 30) and not data.missing.any()
    assert "2 file names differ from the files'" in data.describe()


def test_names_that_are_files_stay_as_they_are(tmp_path):
    path = make(tmp_path, ["A.png", "a.png", "b\\c.png"], ["images/A.png", "images/a.png", "images/b\\c.png"])
    data = opened(path)
    assert [data[i][1]["image_id"] for i in range(3)] == [1, 2, 3] and "differ" not in data.describe()
    assert [data.annotations.file_name(i) for i in range(3)] == ["A.png", "a.png", "b\\c.png"]


def test_image_dir_is_where_they_are_looked_for(tmp_path):
    path = make(tmp_path / "json", ["D:/x/a.png"], [])
    write_image(tmp_path / "elsewhere/deep/a.png")
    assert opened(path, image_dir=tmp_path / "elsewhere")[0][0].shape == (3, 20, 30)


@pytest.mark.parametrize(
    ("names", "files", "said"),
    [
        (["A.PNG"], ["images/a.png", "images/a.PNG"], "file_name 'A.PNG' could be 'images/a.PNG' or 'images/a.png'"),
        (["x/a.png"], ["one/a.png", "two/a.png"], "file_name 'x/a.png' could be"),
        (["A.png", "a.PNG", "b.png"], ["images/a.png", "images/b.png"], "file_name 'A.png' and another could both be"),
        (["a.png", "A.png"], ["images/a.png"], "1 of its 2 image files are missing"),  # it is the first one's
        (["x/a.png", "one/b.png"], ["one/a.png", "one/b.png"], "1 of its 2 image files are missing"),
        (["train/a.png"], ["val/a.png"], "its images (as train/a.png"),
        (["/data/train/a.png"], ["val/a.png"], "its images (as /data/train/a.png"),
        (["c.png"], ["images/a.png"], "its images (as c.png) are not in"),
        (["img_1.png"], ["images/img_12.png"], "(as img_1.png; the nearest name there is img_12.png) are not in"),
        (["a.png", "img_1.png"], ["images/a.png", "images/img_12.png"], "; the nearest name there is img_12.png; put"),
    ],
)
def test_what_is_not_clear_is_named(tmp_path, names, files, said):
    with pytest.raises(InputError) as error:
        opened(make(tmp_path, names, files))
    assert said in str(error.value)


@pytest.mark.parametrize("form", ["{}", "../../outside/a.png", "..\\..\\outside\\a.png", "link\\a.png", "A.png"])
def test_nothing_outside_of_the_data_is_read(tmp_path, form):
    outside = tmp_path / "outside"
    write_image(outside / "a.png")
    path = make(tmp_path / "data", [form.format(outside / "a.png"), "b.png"], ["images/b.png"])
    if "link" in form:
        (tmp_path / "data/images/link").symlink_to(outside)
    if form == "A.png":
        (tmp_path / "data/images/a.png").symlink_to(outside / "a.png")
    with pytest.raises(InputError, match=r"leaves the data folder|are missing|leads out of the data by a link"):
        opened(path)


def test_fix_writes_the_names_of_the_files(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "data", ["IMAGES\\A.png", "IMAGES\\B.png"], ["images/a.png", "images/b.png"])
    command(check_data, "data", "--fix", "out", "--output-dir", "page")
    images = json.loads((tmp_path / "out/instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["images/a.png", "images/b.png"]
    assert len(opened(tmp_path / "out", image_dir=tmp_path / "data")) == 2


def voc(root, listed, image="a", mask="a"):
    """VOC data of the images `image` and "b", listed as `listed`, whose masks are `mask` and "b"."""
    maker = Maker(root).add("b", [(1, DOG, (2, 3, 12, 13))]).add("x", [(1, DOG, (2, 3, 22, 13))])
    for kind, name in (("JPEGImages", image), ("SegmentationObject", mask), ("SegmentationClass", mask)):
        maker.path(kind, "x").rename(maker.path(kind, name))
    maker.list("train", listed)
    return maker


@pytest.mark.parametrize(
    ("listed", "image", "mask"),
    [
        ("JPEGImages\\a.jpg", "a", "a"),
        ("/data/VOC2012/JPEGImages/a.jpg", "a", "a"),
        ("A", "a", "a"),
        ("a", "A", "a"),
        ("a", "a", "A"),
        (f"{ACCENTED[:-4]}", unicodedata.normalize("NFD", ACCENTED[:-4]), ACCENTED[:-4]),
    ],
)
def test_names_in_a_list_of_voc_data(tmp_path, listed, image, mask):
    voc(tmp_path, [listed, "b"], image, mask)
    data = open_data(tmp_path, "train", val_fraction=0).train
    assert [data.file_name(i).rsplit("/", 1)[1] for i in range(2)] == [f"{image}.jpg", "b.jpg"]
    assert [data[i][1]["boxes"].tolist() for i in range(2)] == [[[2, 3, 22, 13]], [[2, 3, 12, 13]]]
    assert (
        re.search("(1 file name differs|2 file names differ) from the files'", data.describe())
        and not data.missing.any()
    )


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["A", "a.jpg"], "train.txt: name 'A' and another could both be 'a'; name each file as it is"),
        (["a", "A"], "A.png: no such mask"),
        (["../../outside/a", "b"], "'../../outside/a' is not the plain name of an image"),
        (["/outside/c", "b"], "'/outside/c' is not the plain name of an image"),
    ],
)
def test_a_name_in_a_list_of_voc_data_that_is_not_clear(tmp_path, listed, said):
    voc(tmp_path / "data", listed)
    write_image(tmp_path / "outside/c.png")
    with pytest.raises(InputError) as error:
        open_data(tmp_path / "data", "train")
    assert said in str(error.value)


def test_names_of_npy_files(tmp_path):
    for name in ("B", "a", "c"):
        add(tmp_path, name, rectangles((1, 2, 3, 12, 13)))
    (tmp_path / "annotations/B.npy").rename(tmp_path / "annotations/b.npy")
    data = open_data(tmp_path, "train", val_fraction=0).train
    assert [data.file_name(i).rsplit("/", 1)[1] for i in range(3)] == ["a.png", "B.png", "c.png"]
    assert "1 file name differs from the files', as 'b' from 'B'" in data.describe() and not data.skipped
    add(tmp_path, "b", rectangles((1, 2, 3, 12, 13)))  # now B has no .npy, and is not taken for another
    data = open_data(tmp_path, "train", val_fraction=0).train
    assert len(data) == 3 and data.skipped == {"images without annotation": 1}
    (tmp_path / "annotations/b.npy").rename(tmp_path / "annotations/C.npy")
    (tmp_path / "annotations/c.npy").rename(tmp_path / "annotations/B.NPY")
    (tmp_path / "images/c.png").unlink()
    (tmp_path / "annotations/C.npy").rename(tmp_path / "annotations/ß.npy")
    for name in ("SS", "ss"):
        add(tmp_path, name, rectangles((1, 2, 3, 12, 13)))
        (tmp_path / f"annotations/{name}.npy").unlink()
    with pytest.raises(InputError, match="annotations: the name 'ß' could be 'SS' or 'ss'; name each file as it is"):
        open_data(tmp_path, "train", val_fraction=0)
