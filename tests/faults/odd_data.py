"""The catalogue's jsons as files, VOC folders, and evaluations that have little to count."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from network_files import MaskRCNNConfig
from tests.faults.catalogue import ERROR, GO_ON, SKIP, WIDTH, Case
from tests.tiny_model import tiny_model
from train_utils.data.formats.voc_files import read_class_ids
from train_utils.data.loaders import EvalLoader
from train_utils.data.options import LoaderOptions
from train_utils.processes.distributed import World
from train_utils.run.evaluation import evaluate

# --- jsons -------------------------------------------------------------------------------------------------


def of_text(what, change, *says) -> Case:
    """change: the json's text -> what is written."""

    def make(data):
        data.text = change(json.dumps(data.content))

    return Case(f"json: {what}", ERROR, make, ("instances_", *says), of="json")


def with_mark(data):
    data.text = b"\xef\xbb\xbf" + json.dumps(data.content).encode()


def all_is_there(seen):
    assert len(seen.data) == 4 and seen.data.object_counts().tolist() == [1] * 4


JSONS = [
    of_text("truncated", lambda text: text[: len(text) // 2], "not valid json", "download or export it again"),
    of_text("truncated at its last bracket", lambda text: text[:-1], "not valid json"),
    of_text("text behind it", lambda text: text + "{}", "not valid json"),
    of_text("nested too deeply", lambda text: f'{text[:-1]}, "x": {"[" * 10**5}{"]" * 10**5}}}', "not valid json"),
    of_text(
        "key twice in an annotation",
        lambda text: text.replace('"area"', '"bbox": [1, 2, 3, 4], "area"', 1),
        "key 'bbox' is duplicated in the object with id 1",
    ),
    of_text(
        "key twice in an image",
        lambda text: text.replace('"height"', '"width": 4, "height"', 1),
        "key 'width' is duplicated in the object with id 10",
    ),
    of_text(
        "two lists of images",
        lambda text: text.replace('{"images"', '{"images": [], "images"'),
        "key 'images' is duplicated",
    ),
    of_text(
        "1e999 in a box",
        lambda text: text.replace("[4, 4, 20, 24]", "[4, 4, 1e999, 24]", 1),
        "annotation 1: bbox holds a number that is not finite",
    ),
    of_text(
        "an integer of 5000 digits",
        lambda text: text.replace("[4, 4, 20, 24]", f"[4, 4, {'9' * 5000}, 24]", 1),
        "not valid json",
    ),
    of_text("not UTF-8", lambda text: text.encode().replace(b"circle", b"\xff\xfe"), "cannot be read"),
    Case("json: byte-order mark", GO_ON, with_mark, check=all_is_there, of="json"),
]
for case in JSONS:
    if "1e999" in case.name:
        case.of = "annotations"


# --- VOC ---------------------------------------------------------------------------------------------------

SIZE = (48, 64)  # height, width
DECLARED = '<?xml version="1.0" encoding="{}"?>'


class Voc:
    """A VOCdevkit to spoil: four images a to d, with a dog and a cat each, in both lists."""

    names = {number: name for name, number in read_class_ids(Path("none")).items()}

    def __init__(self, folder: Path):
        self.folder, self.year, self.encoding = folder, folder / "VOC2012", "utf-8"
        self.image_dir = self.year / "JPEGImages"
        self.objects = {name: ["dog", "cat"] for name in "abcd"}  # the XML's
        self.classes = None
        for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationObject", "SegmentationClass"):
            (self.year / name).mkdir(parents=True)
        for split in ("train", "val"):
            (self.year / f"ImageSets/Segmentation/{split}.txt").write_text("a\nb\nc\nd\n")
        masks = np.zeros((2, *SIZE), dtype=np.uint8)
        masks[:, 4:20, 4:30] = np.array([1, 12])[:, None, None]
        masks[:, 25:45, 35:60] = np.array([2, 8])[:, None, None]
        for name in "abcd":
            Image.fromarray(masks[0] * 90).convert("RGB").save(self.image_dir / f"{name}.jpg")
            for kind, mask in zip(("Object", "Class"), masks, strict=True):
                Image.fromarray(mask).save(self.year / f"Segmentation{kind}" / f"{name}.png")

    def write(self) -> None:
        if self.classes:
            (self.year / "pascal_voc_indices.json").write_text(json.dumps(self.classes), encoding="utf-8")
        for name, names in self.objects.items():
            boxes = [(5, 5, 30, 20), (36, 26, 60, 45), (1, 46, 9, 48)]
            objects = "".join(
                f"<object><name>{what}</name><bndbox>"
                + "".join(
                    f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
                )
                + "</bndbox></object>"
                for what, box in zip(names, boxes, strict=False)
            )
            text = f"{DECLARED.format(self.encoding)}<annotation>{objects}</annotation>"
            (self.year / "Annotations" / f"{name}.xml").write_bytes(text.encode(self.encoding))


def voc(what, outcome, make, *says, check=None, of="annotations", **more) -> Case:
    return Case(f"VOC: {what}", outcome, make, says, check=check, of=of, data=Voc, **more)


def declared(encoding):
    def make(data):
        data.encoding, data.classes = encoding, {"élan": 12, "cat": 8}
        data.objects = {name: ["élan", "cat"] for name in data.objects}

    def check(seen):
        target = seen.data[0][1]
        assert [seen.data.label_map.name(label) for label in target["labels"].tolist()] == ["élan", "cat"]

    return voc(f"XML declared as {encoding}", GO_ON, make, check=check, of="images", trained=True)


def renamed(name):
    return lambda data: data.objects.update(b=["dog", name])


def fewer(data):
    data.objects["a"] = ["dog"]


def taken_from_the_mask(seen):
    target = seen.data[0][1]
    assert [seen.data.label_map.name(label) for label in target["labels"].tolist()] == ["dog", "cat"]
    for done in (seen.run, seen.validated):
        assert "1 instance without an XML object (class from SegmentationClass)" in done.out


def contradicts(data):
    data.objects["a"] = ["dog", "car"]


def the_xml_counts(seen):
    assert [seen.data.label_map.name(label) for label in seen.data[0][1]["labels"].tolist()] == ["dog", "car"]
    assert "1 instance with another class in SegmentationClass than in the XML" in seen.validated.out


def more_than_masks(data):
    data.objects["b"] = ["dog", "cat", "car"]


def cut(kind, suffix):
    return lambda data: (data.year / kind / f"b.{suffix}").write_bytes(b"")


def gone(kind, suffix):
    return lambda data: (data.year / kind / f"b.{suffix}").unlink()


VOC = [
    declared("ISO-8859-1"),
    declared("UTF-16"),
    voc("class that is close to a known one", ERROR, renamed("Cat"), "b.xml: object 2", "(is 'cat' meant?)"),
    voc("class that is like no other", ERROR, renamed("xyzzy"), "b.xml: object 2: class 'xyzzy' is not in"),
    voc("mask without an XML object", GO_ON, fewer, check=taken_from_the_mask, of="images"),
    voc("another class in XML than in the mask", GO_ON, contradicts, check=the_xml_counts, of="images"),
    voc("XML object without a mask", SKIP, more_than_masks, "1 XML object without a mask (first: b)"),
    voc("empty image file", SKIP, cut("JPEGImages", "jpg"), "b.jpg", "the file is empty", of="images"),
    voc("missing image", ERROR, gone("JPEGImages", "jpg"), "1 of its 4 image files", "b.jpg"),
    voc("missing mask", ERROR, gone("SegmentationObject", "png"), "b.png: no such mask"),
    voc("broken mask", ERROR, cut("SegmentationObject", "png"), "b.png: cannot read this mask"),
]


# --- evaluation --------------------------------------------------------------------------------------------


def as_it_is(data):
    pass


def nothing_found(seen):
    assert seen.read("detections.json") == []
    record = seen.read("record_mAP.json")["segm"]
    assert record["stats"]["AP"] == 0 and record["per_class"] == {"circle": 0, "square": 0, "big triangle": None}


def counted_once(seen):
    """Every share of 1 to 5 ranks, in batches of 1 to 3: no image is evaluated twice to fill a rank up."""
    whole = seen.read("detections.json")
    model = tiny_model(width=WIDTH)
    for ranks in range(1, 6):
        worlds = [World(rank, ranks, 0, torch.device("cpu")) for rank in range(ranks)]
        for batch in (1, 2, 3):
            config = MaskRCNNConfig(min_size=64, max_size=96)
            loaders = [EvalLoader(seen.data, world, LoaderOptions(batch), config) for world in worlds]
            indices = sorted(i for loader in loaders for found in loader for i in found.indices)
            assert indices == list(range(4)), (ranks, batch, indices)
        if ranks == 3:
            results = [
                r
                for loader in loaders
                if len(loader)
                for r in evaluate(model, loader, seen.data, World.single(torch.device("cpu"))).found.results
            ]
            assert sorted(results, key=lambda r: r["image_id"]) == whole


def not_applicable(seen):
    assert " big triangle   : n/a" in seen.validated.out
    assert seen.read("record_mAP.json")["bbox"]["per_class"]["big triangle"] is None


EVALUATION = [
    Case(
        "evaluation: no detections",
        GO_ON,
        as_it_is,
        check=nothing_found,
        flags={"validation": ["--box-score-thresh", "0.999"]},
    ),
    Case("evaluation: images that ranks share unevenly", GO_ON, as_it_is, check=counted_once),
    Case("evaluation: class without ground truth", GO_ON, as_it_is, check=not_applicable),
]
CASES = JSONS + VOC + EVALUATION
