"""Data sets made to harm: name -> (make(folder, mark), command, flags). A folder "outside" lies beside the case's
and must not be read."""

import json
import os

import av  # noqa: F401  (imported late else, which a case would be blamed for)
import numpy as np
from PIL import Image

from tests import coco_folders, tiny_model
from tests.faults.hostile_npy import NPY_CASES

DEEP = 100_000
# What a case is given to: a script and its flags, where FOLDER is the case's, FILE what it makes, GOOD sound files.
VALIDATION = ("validation", "--weights-path GOOD/model.pth --data-path FOLDER/data --device cpu")
TRAIN = ("train", "--data-path FOLDER/data --device cpu --weights none --backbone resnet18")
_PREDICT = "--weights-path GOOD/model.pth --device cpu "
_JSON = "--coco-json FOLDER/data/instances_val.json --image-dir FOLDER/data/images --output FOLDER/r.json"
PREDICT = ("predict", _PREDICT + _JSON)
IMAGES = ("predict", _PREDICT + "--img-path FOLDER/data/images")
NAMES = ("predict", _PREDICT + "--img-path GOOD/data/images/0.png --label-json-path FILE")
VIDEO = ("predict", _PREDICT + "--img-path FILE --strict")
RESULTS = ("validation", "--detections FILE --data-path GOOD/data")


def secret(folder):
    """An image beside the case's folder, which nothing may read."""
    path = folder.parent / "outside" / "secret.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
    return path


def coco(change=None, text=None):
    """A sound data set, changed: change(content of a json, folder), or text(json text) of both jsons."""

    def make(folder, mark):
        data = tiny_model.write_coco(folder / "data")
        secret(folder)
        for path in data.glob("*.json"):
            content = json.loads(path.read_text())
            if change is not None:
                change(content, data)
            path.write_text(json.dumps(content) if text is None else text(json.dumps(content)))
        return data / "instances_val.json"

    return make


def named(name, with_size=True):
    """The first image's file name is another one; {outside}: the secret's path."""

    def change(content, data):
        image = content["images"][0]
        image["file_name"] = name.format(
            outside=os.path.relpath(data.parent.parent / "outside", data / "images"),
            absolute=data.parent.parent / "outside",
        )
        if not with_size:
            del image["width"], image["height"]

    return coco(change)


def linked(what="file", with_size=True):
    """The first image, or a folder that holds it, is a link to the secret."""

    def change(content, data):
        outside, image = data.parent.parent / "outside", content["images"][0]
        if what == "file":
            (data / "images" / "0.png").unlink(missing_ok=True)
            (data / "images" / "0.png").symlink_to(outside / "secret.png")
        else:
            image["file_name"] = "more/secret.png"
            if not (data / "images" / "more").is_symlink():
                (data / "images" / "more").symlink_to(outside)
        if not with_size:
            del image["width"], image["height"]

    return coco(change)


def names_file(text):
    def make(folder, mark):
        path = folder / "names.json"
        path.write_text(text)
        return path

    return make


XML = """<annotation><size><width>{side}</width><height>{side}</height></size><object><name>{name}</name><bndbox>
<xmin>3</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def voc(xml=None, head="", classes=None, link=None, listed="a", **fields):
    """A VOC folder of one image with one instance; xml: the annotation file's text."""

    def make(folder, mark):
        root = folder / "data" / "VOC2012"
        for name in ("JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
            (root / name).mkdir(parents=True)
        mask = np.zeros((48, 64), np.uint8)
        mask[3:20, 3:20] = 1
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "JPEGImages" / "a.jpg")
        for kind in ("Object", "Class"):
            Image.fromarray(mask).save(root / f"Segmentation{kind}" / "a.png")
        text = head + XML.format(**{"name": "aeroplane", "side": 64, **fields}) if xml is None else xml
        (root / "Annotations" / "a.xml").write_text(text.replace("OUTSIDE", str(secret(folder))))
        for split in ("train", "val"):
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(listed + "\n")
        if classes is not None:
            (root / "pascal_voc_indices.json").write_text(classes)
        if link is not None:
            target = secret(folder)
            if link.endswith(".xml"):
                target = target.with_name("secret.xml")
                target.write_text(text)
            (root / link).unlink()
            (root / link).symlink_to(target)
        return folder

    return make


def npy(make_file=None, link=False, **fields):
    """Images with .npy annotations: make_file(folder, mark) writes one and returns its path, else of these fields."""

    def make(folder, mark):
        data = folder / "data"
        coco_folders.write_image(data / "images" / "a.png", (48, 64))
        (data / "annotations").mkdir()
        path = data / "annotations" / "a.npy"
        if make_file is not None:
            make_file(folder, mark).rename(path)
        else:
            content = {"boxes": [[3, 3, 20, 20]], "labels": [1], "masks": np.ones((1, 48, 64), bool)}
            np.save(path, {**content, **fields})
        if link:
            (data / "classes.txt").symlink_to(secret(folder))
        return data

    return make


def written(name, content):
    """A file of this content; OUTSIDE stands for the secret's path."""

    def make(folder, mark):
        (folder / name).write_text(content.replace("OUTSIDE", str(secret(folder))))
        return folder / name

    return make


RESULT = '{"image_id": 10, "category_id": 1, "score": 0.5, "segmentation": {"size": [48, 64], "counts": %s}}'
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
    + "]>"
)
QUADRATIC = f'<!DOCTYPE a [<!ENTITY a "{"x" * 100_000}">]>'

DATA_CASES = {
    "a file name that climbs out": (named("{outside}/secret.png"), VALIDATION),
    "a file name that climbs out, without a size": (named("{outside}/secret.png", False), TRAIN),
    "an absolute file name": (named("{absolute}/secret.png"), TRAIN),
    "an absolute file name, without a size": (named("{absolute}/secret.png", False), PREDICT),
    "a file name that is a device": (named("/dev/zero", False), VALIDATION),
    "a file name with a NUL": (named("0.png\0.jpg"), PREDICT),
    "a Windows file name": (named("..\\..\\secret.png"), VALIDATION),
    "a file name with a drive": (named("C:\\secret.png"), TRAIN),
    "a file name with terminal codes": (named("\x1b[2J\nfine.png"), VALIDATION),
    "an image that is a link out": (linked(), VALIDATION),
    "an image that is a link out, without a size": (linked(with_size=False), PREDICT),
    "a folder that is a link out": (linked("folder"), TRAIN),
    "an image that is a link out, in a folder": (linked(), IMAGES),
    "lists 100,000 deep": (coco(text=lambda t: t[:-1] + ', "x": ' + "[" * DEEP + "]" * DEEP + "}"), TRAIN),
    "an id 900 lists deep": (coco(text=lambda t: t.replace('"id": 10', '"id": ' + "[" * 900 + "]" * 900, 1)), TRAIN),
    "an id of 10^6 digits": (coco(text=lambda t: t.replace('"id": 10', '"id": ' + "9" * 10**6, 1)), VALIDATION),
    "a key that is no text": (coco(text=lambda t: t.replace('"images"', "NaN", 1)), PREDICT),
    "a category without an id of 10^6 letters": (
        coco(lambda c, _: c["categories"].append({"name": "x" * 10**6})),
        TRAIN,
    ),
    "a list of files with a video's name": (written("a.mp4", "ffconcat version 1.0\nfile 'OUTSIDE'\n"), VIDEO),
    "a playlist with a video's name": (
        written("a.mkv", "#EXTM3U\n#EXTINF:2.0,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"),
        VIDEO,
    ),
    "text with a video's name": (written("a.avi", "hello\n" * 1000), VIDEO),
    "results 100,000 deep": (written("r.json", "[" * DEEP + "]" * DEEP), RESULTS),
    "a result of 10^6 digits": (written("r.json", '[{"score": ' + "9" * 10**6 + "}]"), RESULTS),
    "a result whose runs go round 2^64": (written("r.json", "[" + RESULT % [2**63, 2**63, 3072] + "]"), RESULTS),
    "a result of endless counts": (written("r.json", "[" + RESULT % f'"{"o" * 10**6}"' + "]"), RESULTS),
    "a class file 100,000 deep": (names_file("[" * DEEP + "]" * DEEP), NAMES),
    "a class file of 10^6 digits": (names_file('{"1": ' + "9" * 10**6 + "}"), NAMES),
    "a class file with NaN": (names_file("{NaN: 1}"), NAMES),
    "a class file whose labels are no numbers": (names_file('{"\\u001b[2J": "x"}'), NAMES),
    "a class file of a label of 10^18": (names_file('{"1000000000000000000": "x"}'), NAMES),
    "XML: ten entities of ten, twelve deep": (voc(head=LAUGHS, name="&a12;"), VALIDATION),
    "XML: the same in an attribute": (voc(xml=LAUGHS + '<annotation x="&a12;"></annotation>'), TRAIN),
    "XML: an entity of 100 kB, 10,000 times": (voc(head=QUADRATIC, name="&a;" * 10_000), VALIDATION),
    "XML: that in an attribute": (voc(xml=QUADRATIC + f'<annotation x="{"&a;" * 10_000}"></annotation>'), TRAIN),
    "XML: a file as an entity": (
        voc(head='<!DOCTYPE a [<!ENTITY x SYSTEM "file://OUTSIDE">]>', name="&x;"),
        VALIDATION,
    ),
    "XML: a parameter entity of a file": (voc(head='<!DOCTYPE a [<!ENTITY % x SYSTEM "file://OUTSIDE"> %x;]>'), TRAIN),
    "XML: a document type elsewhere": (voc(head='<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">'), VALIDATION),
    "XML: XInclude": (
        voc(
            xml='<annotation xmlns:xi="http://www.w3.org/2001/XInclude"><object><name><xi:include '
            'href="OUTSIDE" parse="text"/></name></object></annotation>'
        ),
        TRAIN,
    ),
    "XML: 100,000 deep": (voc(xml="<a>" * DEEP + "</a>" * DEEP), VALIDATION),
    "XML: 120 MB": (voc(name="x" * (120 << 20)), TRAIN),
    "XML: a class of 10^6 letters": (voc(name="x" * 10**6), VALIDATION),
    "XML: a class of terminal codes": (voc(name="&#x9b;2J"), TRAIN),
    "VOC: an image that is a link out": (voc(link="JPEGImages/a.jpg"), VALIDATION),
    "VOC: a mask that is a link out": (voc(link="SegmentationObject/a.png"), TRAIN),
    "VOC: an annotation file that is a link out": (voc(link="Annotations/a.xml"), VALIDATION),
    "VOC: a list that climbs out": (voc(listed="../../../outside/secret"), TRAIN),
    "VOC: an absolute name in a list": (voc(listed="/etc/passwd"), VALIDATION),
    "npy: a pickle of os.system": (npy(NPY_CASES["a pickle of os.system in protocol 4"]), TRAIN),
    "npy: a label of 10^18": (npy(labels=[10**18]), VALIDATION),
    "npy: masks of terabytes, of none": (npy(masks=np.zeros((0, 2**20, 2**20), bool)), TRAIN),
    "npy: a list of names that is a link out": (npy(link=True), VALIDATION),
    "VOC: a class file 100,000 deep": (voc(classes="[" * DEEP + "]" * DEEP), TRAIN),
}
