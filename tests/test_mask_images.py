"""Mask images of all layouts and kinds: the masks are the files', bit for bit; what is unclear is an error."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask

from backbone.errors import InputError
from tests.coco_folders import coco, write
from tests.small_runs import call
from tools import check_data
from train_utils.checkpoints.held_out import options_of
from train_utils.data.formats import found, mask_images
from train_utils.data.formats.mask_images.regions import find_runs, objects_of, single_object, split_regions
from train_utils.data.opening import find_data, open_data
from train_utils.data.options import DataOptions
from train_utils.data.rle import decode_many, encode_many
from train_utils.io import array_cache
from train_utils.prediction.data import data_options

SIZE = (20, 30)


def labels(*boxes, dtype=np.uint8, size=SIZE):
    """A label image; boxes: (value, x1, y1, x2, y2), later ones over earlier ones."""
    image = np.zeros(size, dtype=dtype)
    for value, x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = value
    return image


# A gap in the numbers, objects that touch, one in two parts.
SAMPLE = labels((3, 2, 3, 9, 9), (7, 9, 3, 15, 9), (200, 0, 12, 4, 20), (200, 20, 14, 26, 18))


def save(path, content, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path, **more)


def picture(path, size=SIZE):
    save(path, np.full((*size, 3), 80, np.uint8))


def pair(root, content, name="1", ending="png", folder="masks", **more):
    """An image and its mask."""
    picture(root / "images" / f"{name}.jpg")
    save(root / folder / f"{name}.{ending}", content, **more)


def masks_of(data, i=0):
    return data.target(i)["masks"].to_masks().numpy().astype(bool)


def whole(folder, **options):
    """All images of data without a split."""
    return open_data(folder, "train", val_fraction=0, **options).train


def expected(image):
    return np.stack([image == value for value in np.unique(image[image > 0])])


def paletted(image):
    content = Image.fromarray(image)
    content.putpalette([*range(256)] * 3)
    return content


def coloured(image):
    colours = np.random.default_rng(0).integers(1, 255, (256, 3), dtype=np.uint8)
    colours[0] = 0
    return colours[image]


KINDS = {
    "8 bits": (SAMPLE, "png"),
    "16 bits": (SAMPLE.astype(np.uint16) * 300, "png"),
    "16-bit tiff": (SAMPLE.astype(np.uint16) * 300, "tif"),
    "16-bit big-endian tiff": (
        Image.frombytes("I;16B", SIZE[::-1], (SAMPLE.astype(np.uint16) * 300).astype(">u2").tobytes()),
        "tif",
    ),
    "32-bit tiff": (SAMPLE.astype(np.int32) * 1_000_000, "tif"),
    "floats": (SAMPLE.astype(np.float32), "tif"),
    "palette": (paletted(SAMPLE), "png"),
    "gif": (paletted(SAMPLE), "gif"),
    "grey as rgb": (np.repeat(SAMPLE[..., None], 3, 2), "png"),
    "opaque rgba": (np.dstack([SAMPLE] * 3 + [np.full(SIZE, 255, np.uint8)]), "png"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_file_bit_for_bit(tmp_path, kind):
    content, ending = KINDS[kind]
    pair(tmp_path, content, ending=ending)
    data = whole(tmp_path)
    assert (masks_of(data) == expected(SAMPLE)).all()
    assert data.target(0)["boxes"].tolist() == [[2, 3, 9, 9], [9, 3, 15, 9], [0, 12, 26, 20]]
    assert data.label_map.names == ("object",) and "coloured" not in data.describe()


@pytest.mark.parametrize("dtype", ["i2", "i4", "f4", "i8", "f8"])  # Pillow does not know the last two
def test_masks_of_a_compressed_big_endian_tiff(tmp_path, dtype):
    pair(tmp_path, SAMPLE, ending="tif")
    tifffile.imwrite(tmp_path / "masks" / "1.tif", SAMPLE.astype(dtype), byteorder=">", compression="zlib")
    assert (masks_of(whole(tmp_path)) == expected(SAMPLE)).all()


def test_more_objects_than_8_bits_number_are_said(tmp_path):
    """OpenCV writes 255 for each number above it: the last object then lies in several regions."""
    numbers = np.kron(np.arange(300).reshape(15, 20), np.pad(np.ones((2, 2), np.int64), 1))
    for content, said in ((numbers.clip(max=255).astype(np.uint8), True), (numbers.astype(np.uint16), False)):
        picture(tmp_path / "images" / "1.jpg", content.shape)
        save(tmp_path / "masks" / "1.png", content)
        note = (
            "1 mask of 8 bits, such as masks/1.png, with 255 in up to 45 regions: were more than 255 objects saved in"
        )
        assert (note in whole(tmp_path).describe()) == said


def test_each_colour_of_an_rgb_mask_is_an_object_and_vocs_outline_is_none(tmp_path):
    content = coloured(SAMPLE)
    content[0, :] = (224, 224, 192)
    pair(tmp_path, content)
    data = whole(tmp_path)
    found_masks = {mask.tobytes() for mask in masks_of(data)}
    assert found_masks == {mask.tobytes() for mask in expected(SAMPLE)}
    assert data.describe().endswith("1 mask is coloured: each colour but black is an object")


def test_the_outline_of_vocs_palette_is_no_object(tmp_path):
    content = paletted(np.where(SAMPLE == 200, 255, SAMPLE))
    pair(tmp_path, content)
    assert len(masks_of(whole(tmp_path))) == 3
    content.putpalette([0] * 765 + [224, 224, 192])
    pair(tmp_path, content)
    assert len(masks_of(whole(tmp_path))) == 2
    content.putdata(np.where(SAMPLE > 0, 255, 0).ravel().tolist())  # of masks of 0 and 255, none would be left
    pair(tmp_path, content)
    with pytest.raises(InputError, match=r"1\.png: its only value beside 0 is 255, .*; number objects from 1"):
        whole(tmp_path)


def separate(root, folder, image=SAMPLE):
    for k, value in enumerate(np.unique(image[image > 0])):
        save(root / folder / f"m{k}.png", (image == value).astype(np.uint8) * 255)


def of_stem(root):
    picture(root / "images" / "1.jpg")
    save(root / "labels" / "1.tif", SAMPLE)


def pennfudan(root):
    picture(root / "PNGImages" / "1.png")
    save(root / "PedMasks" / "1_mask.png", SAMPLE)


def cellpose(root):
    picture(root / "1_img.png")
    save(root / "1_masks.png", SAMPLE)


def beside(root):
    picture(root / "1.jpg")
    save(root / "1_mask.png", SAMPLE)


def science_bowl(root):
    picture(root / "1" / "images" / "1.png")
    separate(root, "1/masks")


def one_label_image_each(root):
    picture(root / "1" / "images" / "1.png")
    save(root / "1" / "masks" / "all.png", SAMPLE)


def folder_of_objects(root):
    picture(root / "images" / "1.jpg")
    separate(root, "masks/1")


def numbered_objects(root):
    picture(root / "images" / "1.jpg")
    separate(root, "masks")
    for k in range(3):
        os.rename(root / "masks" / f"m{k}.png", root / "masks" / f"1{'_mask' * (k > 0)}_{k}.png")


LAYOUTS = [
    of_stem,
    pennfudan,
    cellpose,
    beside,
    science_bowl,
    one_label_image_each,
    folder_of_objects,
    numbered_objects,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_and_without_a_split(tmp_path, layout):
    layout(tmp_path / "whole")
    for split in ("train2017", "valid"):
        layout(tmp_path / "split" / split)
    assert find_data(DataOptions(tmp_path / "whole"))[1] == "masks"
    splits = open_data(tmp_path / "split")
    for data in (whole(tmp_path / "whole"), splits.train, splits.val):
        assert len(data) == 1 and (masks_of(data) == expected(SAMPLE)).all() and data[0][0].shape == (3, *SIZE)


@pytest.mark.parametrize(
    "names",
    [
        ("images/{}", "masks/{}"),
        ("Images/{}", "MASKS/{}"),
        ("Images_{}", "Masks_{}"),
        ("images_{}", "masks_{}"),
        ("{}_images", "{}_masks"),
    ],
)
def test_splits_below_and_in_the_names_of_folders(tmp_path, names):
    for number, split in enumerate(("train", "val"), 1):
        folders = [tmp_path / name.format(split) for name in names]
        picture(folders[0] / f"{number}.png")
        save(folders[1] / f"{number}.png", SAMPLE)
    splits = open_data(tmp_path)
    assert [splits.train.image_id(0), splits.val.image_id(0)] == [1, 2]


def test_a_test_set_stands_for_validation_where_there_is_no_other(tmp_path):
    for split in ("train", "test"):
        of_stem(tmp_path / split)
    assert open_data(tmp_path).val.source == str(tmp_path / "test" / "labels")
    of_stem(tmp_path / "val")
    assert open_data(tmp_path).val.source == str(tmp_path / "val" / "labels")
    of_stem(tmp_path / "valid")
    with pytest.raises(InputError, match="several folders for val: val/images, valid/images; give one"):
        open_data(tmp_path)


BINARY = labels((255, 2, 2, 9, 9), (255, 9, 9, 12, 12), (255, 20, 2, 25, 9))  # two meet at a corner


def test_binary_masks_are_not_guessed(tmp_path, capsys):
    for i in range(3):
        pair(tmp_path, BINARY, name=str(i))
    message = (
        f"{tmp_path / 'masks'}: 3 of 3 images have masks of one value beside 0, in up to 2 separate regions: they say "
        "where objects are, not which; give --split-components to read each connected region (8 neighbours) as an "
        "object, or --split-components False to read each value as one object"
    )
    with pytest.raises(InputError) as caught:
        whole(tmp_path)
    assert str(caught.value) == message
    assert call(check_data, tmp_path, "--output-dir", tmp_path.parent / "checked") == 2
    assert message in " ".join(capsys.readouterr().out.split())
    data = whole(tmp_path, split_components=True)
    assert data.target(0)["boxes"].tolist() == [[2, 2, 12, 12], [20, 2, 25, 9]]
    assert "6 objects are connected regions (8 neighbours) of masks: those that touch are one" in data.describe()
    assert data.label_map.names == ("object",)
    assert len(masks_of(whole(tmp_path, split_components=False))) == 1
    assert call(check_data, tmp_path, "--split-components", "--output-dir", tmp_path.parent / "split") in (0, 1)


def test_a_checkpoint_remembers_how_its_masks_were_read_and_other_data_is_asked_anew(tmp_path):
    trained = {"data_path": str(tmp_path), "split_components": True}
    assert options_of(trained).split_components and data_options({}, trained).split_components
    assert data_options({"data_path": "other"}, trained).split_components is None


def test_one_object_an_image_is_no_binary_mask(tmp_path):
    for i in range(3):
        pair(tmp_path, labels((255, 2, 2, 9, 9)), name=str(i))
    assert len(whole(tmp_path)) == 3


CLASSES = labels(*((1 + k % 2, 3 * k, 2, 3 * k + 2, 9) for k in range(8)))


def test_values_in_many_regions_are_classes_under_split_components(tmp_path):
    pair(tmp_path, CLASSES)
    with pytest.raises(
        InputError, match=r"8 separate regions have the 2 values of 1 image, .*nearest neighbour.*--split-components"
    ):
        whole(tmp_path)
    data = whole(tmp_path, split_components=True)
    assert data.target(0)["labels"].tolist() == [1, 2] * 4 and data.label_map.names == ("class_1", "class_2")
    (tmp_path / "classes.txt").write_text("cell\ndirt\n")
    assert whole(tmp_path, split_components=True).label_map.names == ("cell", "dirt")


def test_values_of_all_images_and_splits_make_classes_under_split_components(tmp_path):
    for k in (1, 2):
        pair(tmp_path, labels((k, 2, 3, 9, 9), (k, 12, 3, 15, 9)), name=str(k))
    assert whole(tmp_path, split_components=True).class_counts() == {"class_1": 2, "class_2": 2}
    for split, values in {"train": (1, 2), "val": (2, 2)}.items():
        pair(tmp_path / "split" / split, labels((values[0], 2, 3, 9, 9), (values[1], 12, 3, 15, 9)), name=split)
    splits = open_data(tmp_path / "split", split_components=True)
    assert splits.label_map.names == ("class_1", "class_2") and splits.val.class_counts() == {"class_2": 2}


def test_classes_are_the_folders_of_both_splits(tmp_path):
    for split, kinds in {"train": ("dog", "cat"), "val": ("eel", "dog")}.items():
        picture(tmp_path / split / "images" / "1.jpg")
        for kind in kinds:
            save(tmp_path / split / "masks" / kind / "1.png", labels((1, 2, 2, 9, 9), (2, 9, 2, 12, 9)))
    splits = open_data(tmp_path)
    assert splits.label_map.names == ("cat", "dog", "eel") and "matched" not in splits.val.describe()
    assert splits.train.target(0)["labels"].tolist() == [1, 1, 2, 2]
    assert splits.val.target(0)["labels"].tolist() == [2, 2, 3, 3]
    (tmp_path / "classes.txt").write_text("eel\ndog\ncat\n")
    assert open_data(tmp_path).val.target(0)["labels"].tolist() == [2, 2, 1, 1]
    (tmp_path / "classes.txt").write_text("eel\ndog\n")
    with pytest.raises(InputError, match="its folder cat is none of the 2 classes eel, dog; rename it, or complete"):
        open_data(tmp_path)


def test_classes_of_objects_in_folders_of_their_image(tmp_path):
    picture(tmp_path / "1" / "images" / "1.png")
    for kind in ("dog", "cat"):
        separate(tmp_path, f"1/masks/{kind}")
    data = whole(tmp_path)
    assert data.label_map.names == ("cat", "dog") and data.target(0)["labels"].tolist() == [1] * 3 + [2] * 3


@pytest.mark.parametrize("layout", [of_stem, beside])
def test_a_class_map_says_the_class_of_most_pixels(tmp_path, layout):
    layout(tmp_path)
    kinds = labels((5, 2, 3, 9, 7), (2, 2, 7, 9, 9), (2, 9, 3, 15, 9))  # of 3 mostly 5, of 7 all 2, of 200 none
    save(tmp_path / ("classes/1.png" if layout is of_stem else "1_classes.png"), kinds)
    data = whole(tmp_path)
    assert data.annotations.category_ids.tolist() == [5, 2] and data.label_map.names == ("class_2", "class_5")
    assert data.skipped == {"objects without a class in the class map": 1}
    first = str(Path("labels/1.tif") if layout is of_stem else Path("1_mask.png"))
    assert data.first_skipped == {"objects without a class in the class map": f"{first}: value 200"}
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="class 5 of its objects is none of the 2 classes a, b; complete the list"):
        whole(tmp_path)


@pytest.mark.parametrize("form", ["{0}/masks {0}/Classes", "masks/{0} Classes/{0}", "masks_{0} classes_{0}"])
def test_class_maps_of_all_splits_name_the_classes(tmp_path, form):
    """One split has class 1 alone, one no object, and the folders lie in each way there is."""
    masks, maps = form.split()
    for split, other in {"train": 1, "val": 2, "test": 1}.items():
        picture(tmp_path / masks.replace("masks", "images").format(split) / "1.jpg")
        save(tmp_path / masks.format(split) / "1.png", labels((1, 2, 2, 9, 9), (2, 9, 2, 12, 9)))
        save(tmp_path / maps.format(split) / "1.png", labels((1, 2, 2, 9, 9), (other, 9, 2, 12, 9)))
    splits = open_data(tmp_path)
    assert splits.label_map.names == ("class_1", "class_2")
    assert splits.train.class_counts() == {"class_1": 2} and splits.val.class_counts() == {"class_1": 1, "class_2": 1}
    save(tmp_path / masks.format("train") / "1.png", labels())
    assert open_data(tmp_path).label_map.names == ("class_1", "class_2")


def test_objects_without_a_class_map_beside_others_are_refused(tmp_path):
    for name in "123":
        pair(tmp_path, labels(*[(1, 2, 2, 9, 9)][: name < "3"]), name=name)
    save(tmp_path / "classes" / "1.png", labels((2, 2, 2, 9, 9)))
    with pytest.raises(InputError, match=r"masks/2\.png: 1 image has objects, but no class map"):
        whole(tmp_path)
    save(tmp_path / "classes" / "2.png", labels((1, 2, 2, 9, 9)))
    assert whole(tmp_path).class_counts() == {"class_1": 1, "class_2": 1}


def test_files_tell_classes_under_split_components_too(tmp_path):
    for kind in "ab":
        pair(tmp_path, labels((1, 2, 2, 5, 5), (1, 8, 2, 11, 5)), folder=f"masks/{kind}")
    assert whole(tmp_path, split_components=True).class_counts() == {"a": 2, "b": 2}
    pair(tmp_path / "maps", labels((1, 2, 2, 5, 5), (1, 8, 2, 11, 5)))
    save(tmp_path / "maps" / "classes" / "1.png", labels((1, 2, 2, 5, 5), (2, 8, 2, 11, 5)))
    assert whole(tmp_path / "maps", split_components=True).class_counts() == {"class_1": 1, "class_2": 1}


def test_a_list_of_one_name_names_the_class_and_one_of_several_needs_classes(tmp_path):
    of_stem(tmp_path)
    (tmp_path / "classes.txt").write_text("cell\n")
    assert whole(tmp_path).label_map.names == ("cell",)
    (tmp_path / "classes.txt").write_text("cell\ndirt\n")
    with pytest.raises(InputError, match=r"2 classes have names \(cell, dirt\), but nothing says which object is of"):
        whole(tmp_path)


def test_images_without_a_mask_file_are_left_out_and_said_and_empty_masks_are_negatives(tmp_path):
    of_stem(tmp_path)
    picture(tmp_path / "images" / "2.png")
    pair(tmp_path, labels(), name="3", folder="labels")
    save(tmp_path / "labels" / "4.png", SAMPLE)
    data = whole(tmp_path)
    assert len(data) == 2 and data.object_counts().tolist() == [3, 0]
    assert data.skipped == {"images without a mask file": 1, "mask files without an image": 1}
    assert data.first_skipped == {"images without a mask file": "2.png", "mask files without an image": "4.png"}
    with pytest.raises(InputError, match="--strict: 1 image without a mask file"):
        whole(tmp_path, strict=True)


def test_an_image_beside_others_and_their_masks_is_left_out_and_said(tmp_path):
    beside(tmp_path)
    picture(tmp_path / "2.png")
    (tmp_path / "1_classes.txt").write_text("no image")
    assert whole(tmp_path).first_skipped == {"images without a mask file": "2.png"}


@pytest.mark.parametrize("form", ["{}", "{}/train"])
def test_a_second_folder_of_masks_is_said(tmp_path, form):
    pair(tmp_path, SAMPLE, folder="masks")
    pair(tmp_path, labels(), folder="labels")
    for name in ("images", "masks", "labels") if form != "{}" else ():
        (tmp_path / name / "1").mkdir()
        [file.rename(tmp_path / name / "1" / file.name) for file in (tmp_path / name).iterdir() if file.is_file()]
        (tmp_path / name / "1").rename(tmp_path / form.format(name))
    data = whole(tmp_path)
    assert (masks_of(data) == expected(SAMPLE)).all()
    assert f"not read: 1 file in {form.format('labels')}, beside {form.format('images')} and" in data.describe()


def test_masks_in_folders_as_the_images_are(tmp_path):
    for folder, value in {"a": 1, "a/b": 2, "c": 3}.items():
        picture(tmp_path / "images" / folder / "1.jpg")
        save(tmp_path / "masks" / folder / "1.png", labels((value, 2, 3, 9, 9)))
        save(tmp_path / "classes" / folder / "1.png", labels((value, 2, 3, 9, 9)))
    picture(tmp_path / "images" / "d" / "1.jpg")
    data = whole(tmp_path)
    assert data.class_counts() == {"class_1": 1, "class_2": 1, "class_3": 1}
    assert data.first_skipped == {"images without a mask file": "d/1.jpg"} and len({*map(data.given_id, range(3))}) == 3


@pytest.mark.parametrize("ending", ["-labelled", "-labels", "_Mask", "-mask", "_labeled"])
@pytest.mark.parametrize("folder", [".", "masks"])
def test_endings_of_masks(tmp_path, folder, ending):
    picture(tmp_path / ("." if folder == "." else "images") / "slide [x=0,y=0,w=30,h=20].tif")
    save(tmp_path / folder / f"slide [x=0,y=0,w=30,h=20]{ending}.png", SAMPLE)
    assert (masks_of(whole(tmp_path)) == expected(SAMPLE)).all()


def test_empty_files_of_single_objects_are_skipped_and_counted(tmp_path):
    science_bowl(tmp_path)
    save(tmp_path / "1" / "masks" / "no.png", labels())
    data = whole(tmp_path)
    assert data.skipped == {"objects whose mask is empty": 1} and len(masks_of(data)) == 3


def wrong(root, content, ending="png", **more):
    of_stem(root)
    pair(root, content, name="2", folder="labels", ending=ending, **more)


DEEP = np.repeat(SAMPLE[..., None].astype(np.uint16), 3, 2) + np.array([0, 0, 256], np.uint16)
MISTAKES = {
    "jpeg": (lambda root: wrong(root, SAMPLE, "jpg"), r"2\.jpg: JPEG does not keep a mask's numbers; save it as PNG"),
    "size": (
        lambda root: wrong(root, np.ones((9, 8), np.uint8)),
        r"labels/2\.png: is 8x9, but .*images/2\.jpg is 30x20; a mask has the size of its image",
    ),
    "pages": (
        lambda root: wrong(
            root, Image.fromarray(SAMPLE), "tif", save_all=True, append_images=[Image.fromarray(SAMPLE)]
        ),
        r"2\.tif: holds 2 pages, but images/2\.jpg has 1; a mask has one page, .* or as many as its image",
    ),
    "alpha": (lambda root: wrong(root, np.dstack([SAMPLE] * 4)), r"2\.png: this mask has transparent pixels"),
    "floats": (
        lambda root: wrong(root, SAMPLE / np.float32(3), "tif"),
        r"2\.tif: holds floats from 0 to 66\.6667; whole numbers from 0 are needed",
    ),
    "negative": (
        lambda root: wrong(root, SAMPLE.astype(np.int32) - 1, "tif"),
        r"2\.tif: holds numbers below 0; objects are numbered from 1",
    ),
    "picture": (
        lambda root: wrong(root, np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)),
        r"2\.png: has \d+ colours, as a picture has",
    ),
    "broken": (
        lambda root: (wrong(root, SAMPLE), (root / "labels/2.png").write_bytes(b"no")),
        r"2\.png: this mask can",
    ),
    "two masks": (
        lambda root: (of_stem(root), save(root / "labels" / "1_mask.png", SAMPLE)),
        r"labels: 1\.tif and 1_mask\.png are both masks of 1\.jpg; take one of them out",
    ),
    "a mask and numbers": (
        lambda root: (numbered_objects(root), save(root / "masks" / "1.png", SAMPLE)),
        r"masks: 1\.png and 1_0\.png are both masks of 1\.jpg",
    ),
    "two images": (
        lambda root: (of_stem(root), picture(root / "images" / "1.png")),
        r"images: 1\.jpg and 1\.png have one name but for the ending",
    ),
    "several values": (
        lambda root: (science_bowl(root), save(root / "1" / "masks" / "m1.png", SAMPLE)),
        r"1/masks/m1\.png: holds 3 values beside 0, where a file for each object has one",
    ),
    "no pair": (
        lambda root: (picture(root / "images" / "a.png"), save(root / "masks" / "b.png", SAMPLE)),
        r"masks: none of its masks has the name of an image in .*images; 7\.png or 7_mask\.png belongs to 7\.jpg "
        r"\(images without a mask file such as a\.png, mask files without an image such as b\.png\)",
    ),
    "class map": (
        lambda root: (of_stem(root), save(root / "classes" / "1.png", np.ones((9, 8), np.uint8))),
        r"classes/1\.png: is 8x9; a class map has a class number for each pixel of the mask, which is 30x20",
    ),
    "deep colours": (
        lambda root: (wrong(root, SAMPLE, "tif"), tifffile.imwrite(root / "labels/2.tif", DEEP, photometric="rgb")),
        r"2\.tif: has colours of more than 8 bits, of which only the upper 8 would be read",
    ),
    "beside classes": (
        lambda root: (wrong(root, SAMPLE), pair(root, SAMPLE, name="3", folder="labels/cat")),
        r"labels/1\.tif: lies in no folder of a class, but the data has folders of classes \(cat\); put it into one",
    ),
    "colours": (
        lambda root: wrong(root, coloured(SAMPLE)),
        r"2\.png: has 3 colours, where --split-components needs numbers of classes",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_file(tmp_path, case):
    make, message = MISTAKES[case]
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        whole(tmp_path, split_components=True if case == "colours" else None)


def test_links_out_of_the_data_need_a_flag(tmp_path):
    of_stem(tmp_path / "data")
    os.rename(tmp_path / "data" / "labels" / "1.tif", tmp_path / "1.tif")
    (tmp_path / "data" / "labels" / "1.tif").symlink_to(tmp_path / "1.tif")
    with pytest.raises(InputError, match="labels/1.tif leads out of the data by a link"):
        whole(tmp_path / "data")
    assert len(whole(tmp_path / "data", follow_links=True)) == 1


def test_images_may_be_arrays(tmp_path):
    pair(tmp_path, SAMPLE)
    (tmp_path / "images" / "1.jpg").unlink()
    np.save(tmp_path / "images" / "1.npy", np.zeros((*SIZE, 5), np.uint16))
    assert (masks_of(whole(tmp_path)) == expected(SAMPLE)).all()


def test_folders_in_other_capitals(tmp_path):
    pair(tmp_path, SAMPLE)
    (tmp_path / "images").rename(tmp_path / "Images")
    (tmp_path / "masks").rename(tmp_path / "Masks")
    assert (masks_of(whole(tmp_path)) == expected(SAMPLE)).all()


def test_what_is_no_mask_image_is_left_to_others(tmp_path):
    picture(tmp_path / "images" / "1.png")
    (tmp_path / "labels").mkdir()
    assert not mask_images.recognises(tmp_path)
    with pytest.raises(InputError, match="no mask images found; looked for images/ with masks/"):
        open_data(tmp_path, dataset="masks")


def test_masks_beside_what_another_format_reads_are_said(tmp_path):
    for name in "12":
        pair(tmp_path, SAMPLE, name=name)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    note = "not read: what --dataset masks would read of the same folder"
    assert [note in part.describe() for part in open_data(tmp_path)[:2]] == [True, True]
    assert "not read" not in open_data(tmp_path, dataset="yolo").train.describe()
    assert open_data(tmp_path, dataset="masks").train.class_counts() == {"object": 3}


def test_a_coco_json_counts_before_masks_beside_its_images(tmp_path):
    write(tmp_path, coco())
    picture(tmp_path / "images" / "1.jpg")
    save(tmp_path / "masks" / "1.png", SAMPLE)
    assert find_data(DataOptions(tmp_path))[1] == "coco"


def test_ids_are_the_numbers_of_stems_and_tell_apart_what_has_one_name():
    ids = found.image_ids(["007.png", "a/8.png", "b/8.png", "x.png"])
    assert ids[0] == (7, "") and [given for _, given in ids[1:]] == ['"a/8"', '"b/8"', '"x"']
    assert len({number for number, _ in ids}) == 4


def test_large_data_is_read_once(tmp_path, monkeypatch):
    of_stem(tmp_path / "data")
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_cache, "WORTHWHILE", 1)
    monkeypatch.setattr(found, "SETTLED", 0)
    first = whole(tmp_path / "data")
    monkeypatch.setattr(mask_images, "read_labels", None)
    again = whole(tmp_path / "data")
    assert (masks_of(first) == masks_of(again)).all() and first.describe() == again.describe()
    with pytest.raises(TypeError):  # read again
        whole(tmp_path / "data", split_components=True)
    monkeypatch.undo()
    save(tmp_path / "data" / "labels" / "1.tif", labels((1, 0, 0, 5, 5)))
    assert len(masks_of(whole(tmp_path / "data"))) == 1


def flooded(image):
    """Regions of a label image by a plain search, numbered column by column."""
    out, count = np.zeros(image.shape, dtype=int), 0
    for x, y in np.ndindex(image.shape[::-1]):
        if not image[y, x] or out[y, x]:
            continue
        count, waiting = count + 1, [(y, x)]
        while waiting:
            a, b = waiting.pop()
            if out[a, b]:
                continue
            out[a, b] = count
            near = [(c, d) for c in range(a - 1, a + 2) for d in range(b - 1, b + 2)]
            inside = [(c, d) for c, d in near if 0 <= c < image.shape[0] and 0 <= d < image.shape[1]]
            waiting += [place for place in inside if image[place] == image[y, x]]
    return out


def test_objects_and_regions_agree_with_plain_loops_and_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(150):
        size = tuple(rng.integers(1, 12, 2))
        image = (rng.integers(0, rng.integers(2, 4), size) * (rng.random(size) < rng.random())).astype(np.uint16)
        found_objects = objects_of(find_runs(image), size)
        assert found_objects.values.tolist() == np.unique(image[image > 0]).tolist()
        for value, box, area, counts in zip(*found_objects, strict=True):
            rle = coco_mask.encode(np.asfortranarray(image == value).view(np.uint8))
            assert rle["counts"] == counts and area == coco_mask.area(rle) and (box == coco_mask.toBbox(rle)).all()
        regions, values = split_regions(image)
        assert (regions == flooded(image)).all() and (np.append(0, values)[regions] == image).all()
        alone = single_object(image)
        assert (alone is None) == (len(found_objects.values) > 1)
        assert alone is None or all(map(np.array_equal, alone, found_objects))


def test_run_lengths_survive_their_code():
    rng = np.random.default_rng(0)
    first = np.array([0, 1, 6, 300])
    runs = rng.integers(0, 2 ** rng.integers(1, 31, 300))
    decoded, where, damaged = decode_many(encode_many(runs, first))
    assert decoded.tolist() == runs.tolist() and where.tolist() == first.tolist() and not damaged.any()
