"""The VOC data set: masks matched to XML objects by overlap, nothing lost silently, errors name the file."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from backbone.errors import InputError
from my_dataset_voc import VocDataset
from network_files.operators.cropped_masks import CroppedMasks
from tests.small_runs import call
from tools import npy_to_coco
from train_utils.data.formats import voc
from train_utils.data.formats.voc_files import (
    Classes,
    find_images,
    match_objects,
    read_class_ids,
    read_xml,
    voc_colours,
)
from train_utils.data.images import ImageError
from train_utils.data.opening import open_data
from train_utils.io.plain_text import of_several

DOG, CAT, CAR, PERSON = 12, 8, 7, 15
SIZE = (60, 80)  # height, width
MASKS = ("SegmentationObject", "SegmentationClass")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Maker:
    """Writes a VOC folder image by image."""

    def __init__(self, root, year="VOC2012"):
        self.root, self.folder = root, root / year
        for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation", *MASKS):
            (self.folder / name).mkdir(parents=True)

    def path(self, kind, name):
        suffix = {"JPEGImages": "jpg", "Annotations": "xml"}.get(kind, "png")
        return self.folder / kind / f"{name}.{suffix}"

    def add(self, name, instances, objects=None, size=SIZE, declaration="", xml_size=None):
        """instances: (number, class number, x1 y1 x2 y2); objects: (class name, box from 1, difficult)."""
        masks = np.zeros((2, *size), dtype=np.uint8)
        for number, class_number, (x1, y1, x2, y2) in instances:
            masks[:, y1:y2, x1:x2] = np.array([number, class_number])[:, None, None]
        Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(self.path("JPEGImages", name))
        for kind, mask in zip(MASKS, masks, strict=True):
            image = Image.fromarray(mask)
            image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
            image.save(self.path(kind, name))
        if objects is not None:
            text = "".join(object_xml(*item) for item in objects)
            height, width = xml_size or size
            text = f"<size><width>{width}</width><height>{height}</height></size>{text}"
            encoding = "latin-1" if "ISO" in declaration else "utf-8"
            text = f"{declaration}<annotation>{text}</annotation>"
            self.path("Annotations", name).write_bytes(text.encode(encoding))
        self.list("train", [*self.listed("train"), name])
        return self

    def listed(self, which):
        path = self.folder / "ImageSets" / "Segmentation" / f"{which}.txt"
        return path.read_text().split() if path.exists() else []

    def list(self, which, names):
        (self.folder / "ImageSets" / "Segmentation" / f"{which}.txt").write_text("\n".join(names) + "\n")


def object_xml(name, box, difficult=0):
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(CORNERS, box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path / "VOCdevkit")


def counts(counter):
    return {reason: count for reason, count in counter.items() if count}


def notes(data):
    """{what was decided: how often}."""
    text = "; ".join(data.annotations.notes).removeprefix("notes: ")
    return {title: int(count) for count, title in (note.split(" ", 1) for note in text.split(", ") if note)}


def test_real_photos_whose_xml_and_masks_disagree(shared_data):
    """The figures are those of the data's own description: 2 objects for 3 masks, 4 for ids 1 2 3 4 5 7."""
    data = VocDataset(shared_data / "voc_mini" / "VOCdevkit")
    assert [Path(data.file_name(i)).stem for i in range(len(data))] == ["2011_000003", "2011_000006"]
    assert data.sizes.tolist() == [[338, 500], [375, 500]]
    assert counts(data.skipped) == {}
    assert notes(data) == {voc.FROM_CLASS_MASK: 3}
    names = [[data.label_map.name(x) for x in data[i][1]["labels"].tolist()] for i in range(2)]
    assert names[0] == ["person", "person", "bottle"]
    assert names[1] == ["person", "person", "person", "chair", "person", "sofa"]
    image, target = data[0]
    assert image.shape == (3, 338, 500) and image.dtype == torch.uint8
    mask = np.array(Image.open(shared_data / "voc_mini/VOCdevkit/VOC2012/SegmentationObject/2011_000003.png"))
    expected = torch.from_numpy(np.stack([mask == number for number in (1, 2, 3)])).to(torch.uint8)
    assert torch.equal(target["masks"].to_masks(), expected)
    assert target["area"].tolist() == [15662, 17218, 873]
    assert target["boxes"][2].tolist() == [369, 159, 388, 213]
    val = VocDataset(shared_data / "voc_mini" / "VOCdevkit" / "VOC2012", list_name="val")
    assert [val.label_map.name(x) for x in val[0][1]["labels"].tolist()] == ["bus", "bus", "car"]


def test_objects_are_matched_by_overlap_not_by_order(maker):
    maker.add(
        "a",
        [(1, 0, (2, 2, 20, 30)), (2, 0, (40, 10, 70, 50)), (3, 0, (25, 35, 35, 55))],
        [("cat", (41, 11, 70, 50)), ("car", (26.5, 36, 35, 55.2)), ("dog", (3, 3, 20, 30))],
    )
    for path in (maker.folder / "SegmentationClass").iterdir():
        path.unlink()
    data = VocDataset(maker.root)
    target = data[0][1]
    assert target["labels"].tolist() == [DOG, CAT, CAR]
    assert target["boxes"].tolist() == [[2, 2, 20, 30], [40, 10, 70, 50], [25, 35, 35, 55]]
    assert {k: v.dtype for k, v in target.items() if isinstance(v, torch.Tensor)} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.uint8,
    }
    assert isinstance(target["masks"], CroppedMasks) and target["masks"].size == SIZE
    assert counts(data.skipped) == notes(data) == {}


def test_what_does_not_fit_is_counted(maker):
    maker.add(
        "a",
        [(1, DOG, (0, 0, 20, 20)), (2, CAT, (30, 30, 50, 50)), (4, 0, (60, 5, 70, 15)), (255, 255, (20, 0, 25, 60))],
        [("dog", (1, 1, 20, 20)), ("car", (60, 40, 80, 60))],
        xml_size=(61, 80),
    )
    maker.add("b", [(1, CAR, (5, 5, 30, 30))], [("person", (6, 6, 30, 30))])
    maker.add("c", [(1, CAR, (5, 5, 30, 30))], None)
    maker.list("train", ["a", "b", "", "c", "a"])
    data = VocDataset(maker.root)
    assert data[0][1]["labels"].tolist() == [DOG, CAT]  # number 4 has no class, 255 is void
    assert data[1][1]["labels"].tolist() == [PERSON]
    assert counts(data.skipped) == {voc.NO_MASK: 1, voc.NO_CLASS: 1, voc.LISTED_TWICE: 1}
    once = (of_several(1, title) for title in (voc.CLASS_DIFFERS, voc.NO_XML, voc.XML_SIZE))
    assert notes(data) == {voc.FROM_CLASS_MASK: 2, **dict.fromkeys(once, 1)}
    assert data.first_skipped == {voc.NO_MASK: "a", voc.NO_CLASS: "a", voc.LISTED_TWICE: "a"}
    line = data.describe()
    assert (
        "\n" not in line and f"1 {of_several(1, voc.NO_MASK)} (first: a)" in line and f"2 {voc.FROM_CLASS_MASK}" in line
    )
    assert data.object_counts().tolist() == [2, 1, 1]


def test_agreement_on_the_class_decides_between_overlapping_objects():
    """A person on a sofa: each mask is nearest to the other's box, the class tells them apart."""
    boxes = np.array([[10, 10, 50, 50], [12, 8, 60, 50]])
    xml_boxes = np.array([[10.0, 10, 51, 51], [12, 8, 60, 52]])
    assert match_objects(boxes, np.array([PERSON, 18]), xml_boxes, np.array([18, PERSON])).tolist() == [1, 0]
    assert match_objects(boxes, np.array([0, 0]), xml_boxes, np.array([18, PERSON])).tolist() == [0, 1]
    # an object is given once
    assert match_objects(boxes, np.array([18, 18]), xml_boxes[:1], np.array([18])).tolist() == [0, -1]
    # a small object within its void border still finds its own, but nothing else does
    small, around = np.array([[10, 10, 16, 16]]), np.array([[6.0, 6, 20, 20]])
    assert match_objects(small, np.array([5]), around, np.array([5])).tolist() == [0]
    assert match_objects(small, np.array([5]), around, np.array([6])).tolist() == [-1]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 8))
def test_matching_finds_any_permutation(seed, count):
    rng = np.random.default_rng(seed)
    corner = np.stack([np.arange(count) * 30, rng.integers(0, 20, count)], axis=1)
    boxes = np.concatenate([corner, corner + rng.integers(10, 30, (count, 2))], axis=1).reshape(-1, 4)
    order = rng.permutation(count)
    noise = rng.uniform(-1, 1, (count, 4))
    known = rng.integers(0, 2, count) * 3
    partner = match_objects(boxes, known, boxes[order] + noise, np.full(count, 3))
    assert partner.tolist() == np.argsort(order).tolist()


def test_difficult_trains_normally_and_is_a_crowd_in_the_ground_truth(maker, capsys):
    maker.add(
        "a",
        [(1, DOG, (0, 0, 20, 20)), (2, CAT, (30, 30, 50, 50))],
        [("cat", (31, 31, 50, 50), 1), ("dog", (1, 1, 20, 20), 0)],
    )
    maker.add("empty", [], [])
    data = VocDataset(maker.root)
    assert data[0][1]["iscrowd"].tolist() == [0, 0]
    truth = data.ground_truth()
    assert [(a["category_id"], a["iscrowd"]) for a in truth["annotations"]] == [(DOG, 0), (CAT, 1)]
    json.dumps(truth)
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    assert sorted(coco.imgs) == [data.image_id(0), data.image_id(1)] and len(coco.cats) == 20
    for annotation, mask in zip(truth["annotations"], data[0][1]["masks"].to_masks().numpy(), strict=True):
        assert np.array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum() and annotation["image_id"] == data[0][1]["image_id"]
    assert truth["annotations"][1]["bbox"] == [30, 30, 20, 20]
    image, target = data[1]
    assert target["boxes"].shape == (0, 4) and len(target["masks"]) == len(target["labels"]) == 0
    maker.list("val", ["a"])
    assert call(npy_to_coco, maker.root, maker.root.parent / "json", "--dataset", "voc") == 0
    assert open_data(maker.root.parent / "json").train.object_counts().tolist() == [2, 0]  # trained on here, too
    assert "2 objects, 1 difficult object is like any other" in capsys.readouterr().out


def test_void_and_background_do_not_vote_for_a_class(maker):
    maker.add("a", [(1, 255, (0, 0, 20, 20))], [])
    classes = np.full(SIZE, 255, dtype=np.uint8)
    classes[0:7, 0:20] = 0
    classes[0:2, 0:20] = DOG
    classes[2, 0:20] = CAT
    Image.fromarray(classes).save(maker.path("SegmentationClass", "a"))
    assert VocDataset(maker.root)[0][1]["labels"].tolist() == [DOG]


def test_xml_coordinates_start_at_one_and_include_the_last_pixel(tmp_path):
    (tmp_path / "a.xml").write_text(f"<annotation>{object_xml('dog', (1, 2.5, 10, 20))}</annotation>")
    xml = read_xml(tmp_path / "a.xml", Classes({"dog": 3}, {}, "x"))
    assert xml.boxes.tolist() == [[0, 1.5, 10, 20]] and xml.classes.tolist() == [3] and xml.size is None


def test_masks_are_not_kept(maker):
    for i in range(5):
        maker.add(f"p{i}", [(1, DOG, (0, 0, 500, 500))], [], size=(500, 500))
    data = VocDataset(maker.root)
    assert len(pickle.dumps(data)) < 20_000  # one mask has 250,000 pixels
    # read when asked for: a mask changed on disk is seen
    changed = np.zeros((500, 500), dtype=np.uint8)
    changed[100:200, 100:200] = 1
    Image.fromarray(changed).save(maker.path("SegmentationObject", "p3"))
    assert int(data[3][1]["masks"].areas()) == 10_000


def test_subset(maker):
    for i, count in enumerate((2, 0, 1, 3)):
        instances = [(n + 1, DOG + n, (n * 20, i, n * 20 + 10, i + 9)) for n in range(count)]
        maker.add(f"p{i}", instances, [])
    data = VocDataset(maker.root)
    part = data.subset([3, 1, 0])
    assert len(part) == 3 and [part.image_id(i) for i in range(3)] == [4, 2, 1]
    for i, j in enumerate([3, 1, 0]):
        one, other = part[i][1], data[j][1]
        assert part.file_name(i) == data.file_name(j)
        assert torch.equal(one["boxes"], other["boxes"]) and torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["masks"].to_masks(), other["masks"].to_masks())
    assert part.object_counts().tolist() == [3, 0, 2]
    assert len(part.ground_truth()["annotations"]) == 5
    assert len(data.subset([])) == 0 and data.subset([]).sizes.shape == (0, 2)


def test_folders_and_years(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        Maker(tmp_path / "VOCdevkit", year).add(year, [(1, DOG, (0, 0, 9, 9))], [])
    names = lambda root, year=None: [Path(n).stem for n in VocDataset(root, year).annotations.file_names()]  # noqa: E731
    assert names(tmp_path / "VOCdevkit") == names(tmp_path) == ["VOC2012"]
    assert names(tmp_path / "VOCdevkit", 2007) == names(str(tmp_path), "2007") == ["VOC2007"]
    assert names(tmp_path / "VOCdevkit" / "VOC2007") == ["VOC2007"]
    with pytest.raises(InputError, match="no VOC2010, only VOC2007, VOC2012"):
        names(tmp_path, "2010")
    with pytest.raises(InputError, match="not the folder of year 2012"):
        names(tmp_path / "VOCdevkit" / "VOC2007", "2012")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        names(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="bare: not VOC data: looked for ImageSets/Segmentation"):
        names(tmp_path / "bare")
    with pytest.raises(InputError, match=r"val.txt.*lists there: train; write one, a name of an image each line"):
        VocDataset(tmp_path, list_name="val")


@pytest.mark.parametrize(
    "names, train, val",
    [
        (["default"], "default", "default"),
        (["train"], "train", "train"),
        (["Train", "Validation", "Test", "other"], "Train", "Validation"),
        (["train", "test"], "train", "test"),
        (["train", "train_aug", "trainval", "val", "val_small"], "train", "val"),
    ],
)
def test_lists_of_other_names(maker, names, train, val):
    """As CVAT and Datumaro write them; one list is divided."""
    for name in "abc":
        maker.add(name, [(1, DOG, (0, 0, 9, 9))], [])
    (maker.folder / "ImageSets/Segmentation/train.txt").unlink()
    for name in names:
        maker.list(name, ["a", "b", "c"])
    splits = open_data(maker.root)
    assert [Path(part.source).stem for part in splits.by_role().values()] == [train, val]
    assert len(splits.train) + len(splits.val) == (3 if train == val else 6)


@pytest.mark.parametrize("names", [["a", "b"], ["train_a", "train_b", "val"], []])
def test_lists_that_leave_open_which_is_meant(maker, names):
    for name in names:
        maker.list(name, ["a"])
    listed = ", ".join(f"{name}.txt" for name in names if name != "val") or "no list of images"
    with pytest.raises(InputError, match=f"Segmentation: holds {listed}; call the one that is meant train.txt"):
        open_data(maker.root)


def test_classes_are_pascals_or_the_folders_own(maker):
    maker.add("a", [(1, 9, (0, 0, 20, 20)), (2, 4, (30, 30, 50, 50))], [("nucleus", (1, 1, 20, 20))])
    with pytest.raises(InputError, match=r"a.xml: object 1: class 'nucleus' is not in pascal_voc_indices.json; for"):
        VocDataset(maker.root)
    text = maker.path("Annotations", "a").read_text()
    maker.path("Annotations", "a").write_text(text.replace("nucleus", "airplane"))
    with pytest.raises(InputError, match=r"class 'airplane' is not in .*\(is 'aeroplane' meant\?\)"):
        VocDataset(maker.root)
    maker.path("Annotations", "a").write_text(text)
    own = maker.folder / "pascal_voc_indices.json"
    own.write_text('{"nucleus": 9, "cell": 4}')
    data = VocDataset(maker.root)
    assert [data.label_map.name(x) for x in data[0][1]["labels"].tolist()] == ["nucleus", "cell"]
    assert data[0][1]["labels"].max() == 2 and data.label_map.num_labels == 3
    assert [a["category_id"] for a in data.ground_truth()["annotations"]] == [9, 4]
    own.write_text('{"nucleus": 9}')
    with pytest.raises(InputError, match=r"SegmentationClass.a.png: class number 4"):
        VocDataset(maker.root)
    for text in ("{", "[]", "{}", '{"a": 0}', '{"a": 1, "b": 1}', '{"a": "1"}', '{"a": 255}'):
        own.write_text(text)
        with pytest.raises(InputError, match="pascal_voc_indices.json"):
            VocDataset(maker.root)


LINES = "# label:color_rgb:parts:actions\n"


def in_colours(path, colours):
    """Saves an index mask again in RGB, by [256, 3]."""
    Image.fromarray(colours[np.array(Image.open(path))].astype(np.uint8)).save(path)


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("cell", ["", "10,20,30"])
def test_a_label_map_names_and_colours_classes(maker, rgb, cell):
    maker.add("a", [(1, 2, (0, 0, 20, 20)), (2, 1, (30, 30, 50, 50)), (255, 255, (60, 0, 70, 9))])
    (maker.folder / "labelmap.txt").write_text(f"{LINES}background:0,0,0::\nroof:::\n\ncell:{cell}::\nignored:::\n")
    if rgb:
        colours = np.array(list(voc_colours()))
        in_colours(maker.path("SegmentationObject", "a"), colours)
        colours[2] = [int(value) for value in cell.split(",")] if cell else colours[2]
        in_colours(maker.path("SegmentationClass", "a"), colours)
    data = VocDataset(maker.root)
    target = data[0][1]
    assert [data.label_map.name(x) for x in target["labels"].tolist()] == ["cell", "roof"]
    assert target["boxes"].tolist() == [[0, 0, 20, 20], [30, 30, 50, 50]] and len(data.label_map) == 2
    assert target["masks"].areas().tolist() == [400, 400]
    (maker.folder / "pascal_voc_indices.json").write_text('{"a": 1, "b": 2}')  # precedes it
    assert rgb and cell or VocDataset(maker.root).label_map.names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("background:::\n", "labelmap.txt: names no class"),
        ("cell:::\ncell:::\n", "labelmap.txt: line 2: 'cell' is no class of its own"),
        ("cell:1,2::\n", "labelmap.txt: line 1: '1,2' is not a colour such as 128,0,0"),
        ("cell:1,2,256::\n", "labelmap.txt: line 1: '1,2,256' is not a colour"),
        ("a:1,2,3::\nb:1,2,3::\n", "labelmap.txt: line 2: the colour of 'b' is another class's"),
        ("".join(f"{i}:::\n" for i in range(255)), "labelmap.txt: line 255: '254' is no class of its own; 1 to 254"),
        ("one:::\n", "SegmentationClass/a.png: class number 2 is not one of labelmap.txt"),
        ("one:::\ntwo:9,9,9::\n", None),
    ],
)
def test_a_label_map_that_does_not_fit_is_named(maker, text, said):
    maker.add("a", [(1, 2, (0, 0, 20, 20))])
    (maker.folder / "labelmap.txt").write_text(text)
    if said is None:  # of masks in numbers the colours do not matter, but in RGB
        VocDataset(maker.root)
        in_colours(maker.path("SegmentationClass", "a"), np.array(list(voc_colours())))
        said = "SegmentationClass/a.png: the colour 0,128,0 is no class's or object's; save the mask without smoothing"
    with pytest.raises(InputError, match=said):
        VocDataset(maker.root)


def test_a_label_map_is_no_link_out_of_the_data(maker, tmp_path_factory):
    maker.add("a", [(1, 1, (0, 0, 20, 20))]).list("val", ["a"])
    outside = tmp_path_factory.mktemp("outside") / "labelmap.txt"
    outside.write_text("cell:::\n")
    (maker.folder / "labelmap.txt").symlink_to(outside)
    with pytest.raises(InputError, match="labelmap.txt leads out of the data by a link"):
        open_data(maker.root)
    assert open_data(maker.root, follow_links=True).label_map.names == ("cell",)


def test_the_colour_map_is_vocs():
    colours = list(voc_colours())  # from VOC's development kit, VOClabelcolormap
    known = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 8: (64, 0, 0), 20: (0, 64, 128), 64: (32, 0, 0)}
    assert {i: colours[i] for i in known} == known and colours[255] == (224, 224, 192) and len(set(colours)) == 256


def test_pascals_twenty_classes():
    ids = read_class_ids(Path("no such folder"))
    assert list(ids.values()) == list(range(1, 21)) and list(ids) == sorted(ids)
    assert (ids["aeroplane"], ids["person"], ids["tvmonitor"]) == (1, 15, 20)


@pytest.mark.parametrize(
    "declaration", ['<?xml version="1.0" encoding="utf-8"?>', "\ufeff", '<?xml version="1.0" encoding="ISO-8859-1"?>']
)
def test_xml_encodings(maker, declaration):
    (maker.folder / "pascal_voc_indices.json").write_text('{"élan": 1}', encoding="utf-8")
    maker.add("a", [(1, 0, (0, 0, 20, 20))], [("élan", (1, 1, 20, 20))], declaration=declaration)
    assert VocDataset(maker.root)[0][1]["labels"].tolist() == [1]


def test_xml_fetches_and_expands_nothing(tmp_path):
    (tmp_path / "secret").write_text("dog")
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    outside = f'<!ENTITY e SYSTEM "file://{tmp_path}/secret">'
    for entity in (outside, f'<!ENTITY e0 "dog">{bomb}<!ENTITY e "&e11;">'):
        path = tmp_path / "a.xml"
        content = object_xml("&e;", (1, 2, 3, 4))
        path.write_text(f"<!DOCTYPE annotation [{entity}]><annotation>{content}</annotation>")
        with pytest.raises(InputError, match="a.xml") as caught:
            read_xml(path, Classes({"dog": 1}, {}, "x"))
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "not an XML file"),
        ("<annotation><object>", "not an XML file"),
        ('<?xml version="1.0" encoding="utf-8"?><annotation>\xff</annotation>', "not an XML file"),
        ("<annotation><object><name>dog</name></object></annotation>", "object 1: bndbox/xmin is None"),
        (f"<annotation>{object_xml('dog', (1, 'x', 3, 4))}</annotation>", "bndbox/ymin is 'x', not a number"),
        (f"<annotation>{object_xml('dog', (1, 2, 'nan', 4))}</annotation>", "bndbox/xmax is nan, not a"),
        (f"<annotation>{object_xml('dog', (1, 2, 3, '1e999'))}</annotation>", "bndbox/ymax is 1e999, not a"),
        (f"<annotation>{object_xml('', (1, 2, 3, 4))}</annotation>", "object 1: class '' is not in"),
    ],
)
def test_bad_xml_is_named(maker, xml, message):
    maker.add("a", [(1, DOG, (0, 0, 20, 20))], None)
    maker.path("Annotations", "a").write_bytes(xml.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        VocDataset(maker.root)
    assert message in str(caught.value) and "a.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_box_the_wrong_way_round_matches_nothing(maker):
    maker.add("a", [(1, DOG, (0, 0, 20, 20))], [("dog", (20, 20, 1, 1))])
    assert counts(VocDataset(maker.root).skipped) == {voc.NO_MASK: 1}


def test_bad_masks_are_named(maker):
    maker.add("a", [(1, DOG, (0, 0, 20, 20))], [])
    instance, classes = maker.path("SegmentationObject", "a"), maker.path("SegmentationClass", "a")
    good = instance.read_bytes()
    rgb = io.BytesIO()
    Image.new("RGBA", SIZE[::-1]).save(rgb, "png")
    for content, message in (
        (b"", "cannot read this mask"),
        (good[: len(good) // 2], "cannot read this mask"),
        (rgb.getvalue(), "this one is RGBA"),
    ):
        instance.write_bytes(content)
        with pytest.raises(InputError, match=rf"SegmentationObject.a.png: .*{message}"):
            VocDataset(maker.root)
    instance.unlink()
    with pytest.raises(InputError, match="SegmentationObject.a.png: no such mask"):
        VocDataset(maker.root)
    instance.parent.rmdir()
    with pytest.raises(
        InputError, match="SegmentationObject: no such folder; masks that number the objects are needed"
    ):
        VocDataset(maker.root)
    instance.parent.mkdir()
    instance.write_bytes(good)
    Image.new("P", (9, 9)).save(classes)
    with pytest.raises(InputError, match="SegmentationClass.a.png: its size differs"):
        VocDataset(maker.root)


def test_masks_of_0_and_255_are_vocs_void(maker):
    maker.add("a", [(255, DOG, (0, 0, 20, 20))])
    maker.list("val", ["a"])
    with pytest.raises(InputError, match=r"skipped 1 instance that has the number 255, .*\(number them from 1\)"):
        open_data(maker.root, drop_empty=True)


def test_bad_lists_and_images_are_named(maker):
    maker.add("a", [(1, DOG, (0, 0, 20, 20))], []).add("b", [], []).add("c", [], []).add("d", [], [])
    Image.new("RGB", (11, 12)).save(maker.path("JPEGImages", "b"))
    maker.path("JPEGImages", "c").write_bytes(b"not an image")
    maker.path("JPEGImages", "d").unlink()
    data = VocDataset(maker.root)
    data[0]
    with pytest.raises(InputError, match=r"b.jpg: the image is 11x12 .*SegmentationObject.b.png is 80x60"):
        data[1]
    for i, name in ((2, "c.jpg"), (3, "d.jpg")):
        with pytest.raises(ImageError, match=name):
            data[i]
    assert "1 image file is missing" in data.describe() and data.missing.tolist() == [False, False, False, True]
    assert data.subset([3, 0]).missing.tolist() == [True, False]
    for names, message in (([], "lists no image"), (["../a"], "not the plain name"), (["/etc/x"], "plain")):
        maker.list("train", names)
        with pytest.raises(InputError, match=f"train.txt: .*{message}"):
            VocDataset(maker.root)
    maker.list("train", ["d"])
    with pytest.raises(InputError, match="JPEGImages: holds none of the 1 image of"):
        VocDataset(maker.root)


def test_images_of_another_format_and_turned_by_exif(maker):
    maker.add("a", [(1, DOG, (0, 0, 20, 20))], [])
    maker.path("JPEGImages", "a").rename(maker.folder / "JPEGImages" / "a.png")
    for ending in ("csv", "json", "txt"):  # of other tools
        (maker.folder / "JPEGImages" / f"a.{ending}").write_text("{}")
    assert VocDataset(maker.root)[0][0].shape == (3, *SIZE)
    files = {"a": ["a.npy", "a.json", "a.zip"], "b": ["b.png", "b.jpg", "b.npy"], "c": ["c.zip"]}
    for name in sum(files.values(), []):
        (maker.folder / "JPEGImages" / name).write_text("")
    (maker.folder / "JPEGImages" / "a.png").rename(maker.folder / "a.png")
    assert find_images(maker.folder, list(files))[0] == ["a.npy", "b.jpg", "c.zip"]
    (maker.folder / "a.png").rename(maker.folder / "JPEGImages" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(maker.folder / "JPEGImages" / "a.png", "jpeg", exif=exif)
    assert VocDataset(maker.root)[0][0].shape == (3, *SIZE)  # the mask fits the pixels as they are stored
