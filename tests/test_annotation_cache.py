"""The cache of checked annotations: the same content from it, and nothing but a sound index of the same json."""

import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backbone.errors import InputError
from my_dataset_coco import CocoDataset
from tests.coco_folders import annotation, many, square, write
from train_utils.data.annotations import DTYPES
from train_utils.data.formats.coco import reading as coco_annotations
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.data.opening import open_data
from train_utils.io import array_cache as annotation_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache that takes jsons of any size."""
    monkeypatch.setattr(annotation_cache, "WORTHWHILE", 1)
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_parsing(monkeypatch):
    """Call it, and from then on no json is parsed."""

    def refuse(*_):
        raise AssertionError("the json is parsed")

    return lambda: [monkeypatch.setattr(coco_annotations, name, refuse) for name in ("read_lists", "read_json")]


def varied():
    """Every kind of segmentation, something skipped, a missing area, an image without objects."""
    content = many(5)
    content["annotations"] += [
        annotation(11, 2, segmentation=[[1 / 3, 1, 9, 1, 9, 9.125]], area=None),
        annotation(12, 2, segmentation={"size": [20, 30], "counts": [100, 50, 450]}, iscrowd=1),
        annotation(13, 4, bbox=[2, 3, 0, 1]),
        annotation(14, 4, segmentation=[*square(), *square(15)]),
    ]
    content["images"].append({"id": 9, "file_name": "é.png", "height": 20, "width": 30})
    return content


def indexes(cache):
    return sorted(cache.iterdir()) if cache.is_dir() else []


def same(a, b):
    assert (a.source, a.categories, list(a.skipped.items())) == (b.source, b.categories, list(b.skipped.items()))
    assert (a.first_skipped, a.given_categories) == (b.first_skipped, b.given_categories)
    assert [a.given_id(row) for row in range(len(a))] == [b.given_id(row) for row in range(len(b))]
    assert a.file_names() == b.file_names()
    for name in (
        "image_ids",
        "sizes",
        "first",
        "annotation_ids",
        "category_ids",
        "iscrowd",
        "boxes",
        "areas",
        "kinds",
        "first_part",
    ):
        owners = (a.masks, b.masks) if name in ("kinds", "first_part") else (a, b)
        left, right = (getattr(owner, name) for owner in owners)
        assert left.dtype == right.dtype == DTYPES[name] and np.array_equal(left, right, equal_nan=name == "areas")
    for name in ("values", "first"):
        assert np.array_equal(getattr(a.masks.parts, name), getattr(b.masks.parts, name))


def test_the_same_from_the_cache(tmp_path, cache, no_parsing):
    path = write(tmp_path, varied())
    first = CocoDataset(path, tmp_path / "images")
    assert len(indexes(cache)) == 1 and first.annotations.notes == ()
    no_parsing()
    again = CocoDataset(path, tmp_path / "images")
    same(first.annotations, again.annotations)
    assert again.describe() == first.describe() and "; skipped 1 annotation whose box" in again.describe()
    assert again.ground_truth() == first.ground_truth() and again.label_map == first.label_map
    for i in range(len(first)):
        assert (again[i][0] == first[i][0]).all() and (again[i][1]["masks"].pixels == first[i][1]["masks"].pixels).all()
    assert again.ground_truth()["annotations"][2]["segmentation"] == [[1 / 3, 1, 9, 1, 9, 9.125]]
    copied = pickle.loads(pickle.dumps(again))
    assert copied.ground_truth() == first.ground_truth()


def test_open_data_uses_it(tmp_path, cache, no_parsing):
    write(tmp_path, many(3), "instances_train.json")
    write(tmp_path, many(2, start=4), "instances_val.json")
    open_data(tmp_path)
    assert len(indexes(cache)) == 2
    no_parsing()
    splits = open_data(tmp_path)
    assert (len(splits.train), len(splits.val)) == (3, 2) and splits.val[1][1]["image_id"] == 5


def put(index, data):
    index.unlink()  # the old file is mapped: it may go, but not change
    index.write_bytes(data)


def cut(index, _):
    put(index, index.read_bytes()[:-1])


def flip(index, _):
    data = bytearray(index.read_bytes())
    data[-70] ^= 1
    put(index, data)


def flip_header(index, _):
    put(index, index.read_bytes().replace(b'"categories": [[1,', b'"categories": [[2,'))


def empty(index, _):
    put(index, b"")


def another_file(index, _):
    put(index, b"\x00\xff" * 5000)


def another_json(index, monkeypatch):
    folder = index.parent.parent / "other"
    read_annotations(write(folder, many(3)))
    (other,) = set(indexes(index.parent)) - {index}
    other.replace(index)


def older_format(index, monkeypatch):
    index.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(annotation_cache, "FORMAT", annotation_cache.FORMAT - 1)
        read_annotations(index.parent.parent / "instances.json")


def other_types(index, monkeypatch):
    index.unlink()
    with monkeypatch.context() as patch:
        pieces, change = annotation_cache.block_pieces, {"areas": np.float32}
        patch.setattr(
            annotation_cache,
            "block_pieces",
            lambda values, arrays: pieces(
                values, {name: array.astype(change.get(name, array.dtype)) for name, array in arrays.items()}
            ),
        )
        read_annotations(index.parent.parent / "instances.json")


@pytest.mark.parametrize(
    "spoil", [cut, flip, flip_header, empty, another_file, another_json, older_format, other_types]
)
def test_a_spoilt_index_is_built_anew(tmp_path, cache, no_parsing, monkeypatch, spoil):
    path = write(tmp_path, varied())
    first = read_annotations(path)
    (index,) = indexes(cache)
    sound = index.read_bytes()
    spoil(index, monkeypatch)
    assert index.exists() and index.read_bytes() != sound
    assert annotation_cache.load(index.stem, DTYPES) is None
    same(read_annotations(path), first)
    assert index.read_bytes() == sound
    no_parsing()
    same(read_annotations(path), first)


def test_a_json_changed_within_its_second_is_seen(tmp_path):
    path = write(tmp_path, many(3))
    read_annotations(path)
    times = os.stat(path)
    path.write_text(path.read_text().replace('"area": 100', '"area": 101'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(path).st_size == times.st_size and read_annotations(path).areas.tolist() == [101] * 3


def test_a_json_changed_while_it_is_read_is_not_kept(tmp_path, cache, monkeypatch):
    path = write(tmp_path, many(3))
    monkeypatch.setattr(annotation_cache, "file_hash", lambda file: "0" * 64)
    assert len(read_annotations(path)) == 3 and not indexes(cache)


def test_a_folder_that_cannot_be_written_is_said_and_no_error(tmp_path, cache):
    cache.write_text("a file where the folder should be")
    ds = CocoDataset(write(tmp_path, many(3)), tmp_path / "images")
    assert len(ds) == 3 and ds.describe().endswith(f"; not kept in {cache} for the next time (File exists)")


def test_a_sound_index_is_not_replaced(tmp_path, cache, monkeypatch):
    """Other processes may have it mapped, on other machines too."""
    path = write(tmp_path, many(3))
    read_annotations(path)
    (index,) = indexes(cache)
    before = os.stat(index)
    with monkeypatch.context() as patch:
        patch.setattr(coco_annotations, "_from_index", lambda *_: None)  # as if it had come meanwhile
        read_annotations(path)
    assert os.stat(index) == before and indexes(cache) == [index]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(annotation_cache.os, "replace", full)
    ds = CocoDataset(write(tmp_path, many(3)), tmp_path / "images")
    assert len(ds[2][1]["boxes"]) == 1 and "(No space left on device)" in ds.describe() and not indexes(cache)


def test_where_it_lies_and_how_it_is_switched_off(tmp_path, cache, monkeypatch):
    path = write(tmp_path, many(3))
    monkeypatch.setenv("MASKRCNN_CACHE", "off")
    assert len(read_annotations(path)) == 3 and annotation_cache.cache_folder() is None
    monkeypatch.delenv("MASKRCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read_annotations(path)
    assert len(indexes(tmp_path / "xdg" / "maskrcnn")) == 1 and not indexes(cache)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert annotation_cache.cache_folder() == tmp_path / "home" / ".cache" / "maskrcnn"


def test_without_a_home_there_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv("MASKRCNN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)  # as for a user id that the system does not know
    monkeypatch.chdir(tmp_path)
    assert annotation_cache.cache_folder() is None
    assert len(read_annotations(write(tmp_path, many(3)))) == 3 and not (tmp_path / "~").exists()


def test_others_may_read_an_index_as_the_umask_says(tmp_path, cache):
    before = os.umask(0o022)
    try:
        read_annotations(write(tmp_path, many(3)))
    finally:
        os.umask(before)
    (index,) = indexes(cache)
    assert os.name != "posix" or index.stat().st_mode & 0o777 == 0o644


def test_small_jsons_and_those_that_need_their_images_are_not_kept(tmp_path, cache, monkeypatch):
    sizeless = write(tmp_path, {**many(2), "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)]})
    assert CocoDataset(sizeless, tmp_path / "images").sizes.tolist() == [[20, 30]] * 2
    monkeypatch.setattr(annotation_cache, "WORTHWHILE", 10**6)
    read_annotations(write(tmp_path, many(3), "small.json"))
    assert not indexes(cache)


def test_a_mistake_is_named_each_time(tmp_path, cache):
    content = many(3)
    content["annotations"][1]["category_id"] = 7
    path = write(tmp_path, content)
    for _ in range(2):
        with pytest.raises(InputError, match="instances.json: annotation 2: category_id 7 is not in"):
            read_annotations(path)
    assert not indexes(cache)


def test_many_may_write_at_once(tmp_path, cache):
    path = write(tmp_path, varied())
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(read_annotations, [path] * 8))
    assert len(indexes(cache)) == 1
    for other in read:
        same(other, read_annotations(path))


def test_the_oldest_make_room(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(annotation_cache, "KEPT", 2)
    cache.mkdir()
    own, unfinished = "f" * 64 + ".annotations", ".maskrcnn-0123456789abcdef.unfinished"
    others = {"scan.annotations", "thesis.unfinished", own}  # one has an index's name by chance, but other content
    for name in (*others, unfinished):
        (cache / name).write_text("mine")
        os.utime(cache / name, (0, 10**6))
    for count in (2, 3, 4):
        read_annotations(write(tmp_path, many(count)))
        written = [path for path in indexes(cache) if path.name not in others]
        for index in written:
            os.utime(index, (0, os.stat(index).st_mtime - 100))
        newest = max(written, key=os.path.getmtime)
    assert len(written) == 2 and newest.exists() and {path.name for path in indexes(cache)} > others
    assert not (cache / unfinished).exists()
