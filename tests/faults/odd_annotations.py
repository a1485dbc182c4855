"""The catalogue's annotations: boxes, segmentations, ids and categories."""

import numpy as np
from pycocotools import mask as coco_mask

from tests.faults.catalogue import ERROR, GO_ON, SKIP, Case
from train_utils.evaluation.numbers import evaluate_results
from train_utils.io.plain_text import of_several

SIZE = (64, 48)  # of image 11, height and width
SQUARE = [[4, 4, 24, 4, 24, 28, 4, 28]]
RING = np.zeros(SIZE, dtype=np.uint8, order="F")
RING[4:28, 4:24] = 1
RING[10:20, 10:20] = 0
INFINITE, NAN = float("inf"), float("nan")


def add(*several, **fields):
    """One more annotation, id 17; or one for each dict, ids from 17."""

    def make(data):
        for number, each in enumerate(several or [fields], 17):
            data.add(number, **each)

    return make


def skip(what, reason, *forms) -> Case:
    said = (f"{len(forms)} {of_several(len(forms), reason)} (first: id 17)",)
    return Case(f"annotation: {what}", SKIP, add(*forms), said, skips=len(forms))


def wrong(what, said, **fields) -> Case:
    return Case(f"annotation: {what}", ERROR, add(**fields), ("instances_", "annotation 17: ", said))


def goes_on(what, make, check, **more) -> Case:
    return Case(f"annotation: {what}", GO_ON, make, check=check, **more)


def teaches_nothing(what, make, check, cause) -> Case:
    """Training stops, validation says that there is no AP."""
    says = (f"nothing to learn: no object in its 4 images: {cause}",)
    return Case(f"annotation: {what}", ERROR, make, says=says, check=check, validates=GO_ON)


def last(seen) -> dict:
    """Box, mask and so on of the annotation that was added: the last of image 11."""
    target = seen.data[1][1]
    masks = target["masks"].to_masks().numpy()
    values = {key: target[key][-1].tolist() for key in ("boxes", "area", "iscrowd")}
    return {**values, "mask": masks[-1], "count": len(masks)}


def mask_is(mask, **others):
    def check(seen):
        found = last(seen)
        assert found["count"] == 2 and (found["mask"] == mask).all()
        assert all(found[key] == value for key, value in others.items()), found

    return check


def box_mask(x1, y1, x2, y2):
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def runs() -> list[int]:
    flat = RING.flatten(order="F")
    return np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()


COMPRESSED = {"size": list(SIZE), "counts": coco_mask.encode(RING)["counts"].decode()}
PLAIN = {"size": list(SIZE), "counts": runs()}


def rle(**changed) -> dict:
    return {"segmentation": {**PLAIN, **changed}}


def only_crowds(data):
    for annotation in data.annotations:
        annotation["iscrowd"] = 1


def no_crowd_counts(seen):
    assert seen.data[0][1]["iscrowd"].tolist() == [1]
    record = seen.read("record_mAP.json")["segm"]
    assert record["stats"]["AP"] == -1 and set(record["per_class"].values()) == {None}


def one_without(data):
    del data.annotations[1]


def has_none(seen):
    image, target = seen.data[1]
    assert target["boxes"].shape == (0, 4) and len(target["masks"]) == 0 and len(seen.data[0][1]["boxes"]) == 1
    assert "1 without objects" in seen.run.out


def none_at_all(data):
    data.annotations.clear()


def no_average(seen):
    assert seen.read("record_mAP.json")["bbox"]["stats"]["AP"] == -1 and seen.read("detections.json")


def all_are_found(seen):
    """The ground truth as results has an AP of 1: no annotation is lost by its id."""
    truth = seen.data.ground_truth()
    assert len(truth["annotations"]) == 4 and all(a["id"] > 0 for a in truth["annotations"])
    results = [{**annotation, "score": 1.0} for annotation in truth["annotations"]]
    assert evaluate_results(truth, results, ["bbox"])["bbox"].stats[0] == 1


def numbered(*, images=None, annotations=None, categories=None):
    """Other ids: functions from the old ones."""

    def make(data):
        for image in data.images:
            image["id"] = images(image["id"]) if images else image["id"]
        for annotation in data.annotations:
            for key, new in (("id", annotations), ("image_id", images), ("category_id", categories)):
                annotation[key] = new(annotation[key]) if new else annotation[key]
        for category in data.content["categories"]:
            category["id"] = categories(category["id"]) if categories else category["id"]

    return make


def written_back(*, images=int, categories=int):
    """The ids in both files of results are those of the json, of the same type."""

    def check(seen):
        assert seen.data.object_counts().tolist() == [1] * 4
        for name in ("detections.json", "R.json"):
            results = seen.read(name)
            assert {r["image_id"] for r in results} == {images(i) for i in (10, 11, 12, 13)}, name
            assert {r["category_id"] for r in results} <= {categories(i) for i in (1, 2, 4)} and results
        all_are_found(seen)

    return check


def of_ids(what, **new) -> Case:
    """Ids of another kind, which the files of results give as they are."""
    kept = {kind: function for kind, function in new.items() if kind != "annotations"}
    return goes_on(what, numbered(**new), written_back(**kept), of="json", trained="categories" in new)


def huge(i):
    return 10**25 + i


def image_name(i):
    return f"{i:06d}" if i % 2 else f"img {i}"


def uuid(i):
    return f"uuid-{i}"


def category_name(i):
    return {1: "cat", 2: "dog", 4: "it is not ASCII: é"}[i]


def twice(kind):
    def make(data):
        data.content[kind].append({**data.content[kind][1]})

    return make


def drop(*keys):
    return lambda data: [data.annotations[1].pop(key) for key in keys]


def two_parts(data):
    data.annotations[1]["segmentation"] = [[1, 1, 5, 5], *SQUARE]


def without_sizes(data):
    for image in data.images:
        del image["height"], image["width"]


def sizes_are_read(seen):
    assert seen.data.sizes.tolist() == [[48, 64], [64, 48], [48, 64], [40, 40]]


def field(key, value, index=1):
    def make(data):
        data.images[index].pop(key)
        if value is not None:
            data.images[index][key] = value

    return make


def of_image(what, make, *says) -> Case:
    return Case(f"image: {what}", ERROR, make, ("instances_", *says), of="json")


NO_AREA = "annotations whose box has no area in the image"
POLYGON = "polygon holds a number that is not finite"
OUTSIDE = "annotations whose polygons have no area in the image"
CASES = [
    skip("box of width 0, of negative height", NO_AREA, {"bbox": [4, 4, 0, 9]}, {"bbox": [4, 4, 9, -3]}),
    skip("box outside the image", NO_AREA, {"bbox": [48, 4, 9, 9]}, {"bbox": [-9, -9, 9, 9]}),
    skip(
        "polygon outside the image, box inside",
        OUTSIDE,
        {"segmentation": [[50, 4, 60, 4, 60, 9]]},
        {"segmentation": [[4, -9, 9, -9, 9, -1]]},
    ),
    skip("polygon that is a line", OUTSIDE, {"segmentation": [[4, 4, 9, 4, 20, 4]]}),
    skip("empty segmentation", "annotations without segmentation", {"segmentation": []}, {"segmentation": {}}),
    skip("no segmentation", "annotations without segmentation", {"segmentation": None}),
    skip(
        "polygon of an odd number of values",
        "annotations with a polygon of an odd number of values",
        {"segmentation": [[4, 4, 24, 4, 24, 28, 4]]},
        {"segmentation": [*SQUARE, [1, 2, 3]]},
    ),
    skip(
        "polygon of two points",
        "annotations whose polygons have fewer than 3 points",
        {"segmentation": [[4, 4, 24, 4]]},
    ),
    skip("RLE without a pixel", "annotations whose mask is empty", rle(counts=[64 * 48])),
    skip("image that is not listed", "annotations of images that are not listed", {"image_id": 99}, {"image_id": "x"}),
    wrong("NaN in the box", "bbox holds a number that is not finite", bbox=[4, NAN, 9, 9]),
    wrong("Infinity in the box", "bbox holds a number that is not finite", bbox=[4, 4, INFINITE, 9]),
    wrong("a number of 400 digits in the box", "bbox holds a number that is not finite", bbox=[4, 4, 10**400, 9]),
    wrong("NaN as area", "area holds a number that is not finite", area=NAN),
    wrong("Infinity in a polygon", POLYGON, segmentation=[[4, 4, INFINITE, 4, 9, 9]]),
    wrong("NaN in a polygon", POLYGON, segmentation=[[4, 4, NAN, 4, 9, 9]]),
    wrong("1e9 in a polygon", "polygon reaches 1e+09, the image is 48x64", segmentation=[[4, 4, 1e9, 4, 9, 9]]),
    wrong("polygon of pairs", "polygon is not a flat list", segmentation=[[[4, 4], [9, 4], [9, 9]]]),
    wrong("segmentation that is text", "neither a list of polygons nor an RLE", segmentation="x"),
    wrong("RLE whose sum is too small", "RLE does not fit its size", **rle(counts=[10, 5, 3])),
    wrong("RLE whose sum is too large", "RLE does not fit its size", **rle(counts=[10, 5, 10**9])),
    wrong("RLE with a negative run", "RLE does not fit its size", **rle(counts=[10, -5, 64 * 48 - 5])),
    wrong("RLE of another size", "RLE is for a size of [48, 64]", **rle(size=[48, 64])),
    wrong("compressed RLE that is damaged", "RLE counts are damaged", **rle(counts="\x01")),
    wrong("compressed RLE whose sum is wrong", "RLE does not fit its size", **rle(counts=COMPRESSED["counts"] + "1")),
    wrong("neither segmentation nor box", "has neither segmentation nor bbox", segmentation=None, bbox=None),
    wrong("box of three numbers", "bbox has 3 numbers", bbox=[4, 4, 9]),
    wrong("category that is not listed", "category_id 3 is not in the json's list", category_id=3),
    wrong("no category", "'category_id' is missing", category_id=None),
    wrong("iscrowd that is text", "iscrowd '0' is neither 0 nor 1", iscrowd="0"),
    goes_on(
        "box and polygon partly outside",
        add(bbox=[-5, -5, 20, 20], segmentation=[[-5, -5, 15, -5, 15, 15, -5, 15]]),
        mask_is(box_mask(0, 0, 15, 15), boxes=[0, 0, 15, 15]),
    ),
    goes_on("compressed RLE", add(segmentation=COMPRESSED), mask_is(RING)),
    goes_on("uncompressed RLE", add(segmentation=PLAIN, iscrowd=1), mask_is(RING, iscrowd=1)),
    goes_on(
        "no area, no iscrowd",
        add(area=None, iscrowd=None, segmentation=COMPRESSED),
        mask_is(RING, area=RING.sum(), iscrowd=0),
    ),
    goes_on("no box, polygon", add(bbox=None), mask_is(box_mask(4, 4, 24, 28), boxes=[4, 4, 24, 28])),
    goes_on("no box, RLE", add(bbox=None, segmentation=COMPRESSED), mask_is(RING, boxes=[4, 4, 24, 28])),
    goes_on(
        "a part of two points beside a whole one",
        add(segmentation=[[1, 1, 5, 5], *SQUARE]),
        mask_is(box_mask(4, 4, 24, 28)),
    ),
    goes_on("an image without objects", one_without, has_none),
    teaches_nothing("no objects at all", none_at_all, no_average, "none is annotated"),
    teaches_nothing("crowds only", only_crowds, no_crowd_counts, "4 crowd regions (iscrowd 1), of"),
    goes_on("id 0", numbered(annotations=lambda i: i - 1), all_are_found),
    goes_on("no ids", numbered(annotations=lambda i: None), all_are_found),
    of_ids("sparse ids", images=lambda i: i**9, annotations=lambda i: i**20, categories=lambda i: i**20),
    of_ids("ids beyond 64 bits", images=lambda i: 10**30 + i, annotations=lambda i: 2**64 + i, categories=huge),
    of_ids("ids that are integers as text", images=str, annotations=str, categories=str),
    of_ids("image ids as text, with zeros before or other than integers", images=image_name, annotations=uuid),
    of_ids("category ids that are words", categories=category_name),
    goes_on("ids with a point", numbered(images=float, annotations=float, categories=float), written_back(), of="json"),
    of_image("two of one id", twice("images"), "image id 11 is duplicated (1.png and 1.png)"),
    of_image("no file name", field("file_name", None), "image id 11: file_name None"),
    of_image("height 0", field("height", 0), "image id 11: a size of 48x0"),
    of_image("height NaN", field("height", float("nan")), "image id 11: height nan is not an integer"),
    Case("image: no sizes in the json", GO_ON, without_sizes, check=sizes_are_read, of="json"),
    Case("annotation: two of one id", ERROR, twice("annotations"), ("instances_", "annotation id 2 is duplicated")),
    Case(
        "category: two of one id",
        ERROR,
        twice("categories"),
        ("instances_", "category id 2 is duplicated"),
        predicts=ERROR,  # which gives results the ids of the json's classes
    ),
]
