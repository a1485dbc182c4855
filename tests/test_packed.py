"""A packed data set gives the samples and the ground truth of the data it was made from; a damaged one is refused."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import train
import train_utils.data.formats.packed
from backbone.errors import InputError
from network_files.config import ALL_PAGES
from tests.coco_folders import annotation, coco, square, write
from tests.faults.hostile_data import voc
from tests.npy_folders import many
from tests.small_runs import call, differences, flags
from tools import pack_dataset
from train_utils.checkpoints.held_out import fingerprint
from train_utils.data.formats.packed import TAIL, PackedRecords
from train_utils.data.images.reading import Reading
from train_utils.data.opening import open_data
from train_utils.evaluation.numbers import evaluate_results
from train_utils.io.array_block import block_pieces, read_block
from train_utils.run import step


def varied(folder, ids=(7, 2, 5, 9)):
    """Images with objects of both classes, a crowd, a box larger than its mask, none; one turned by its EXIF."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in ids]
    one, two = ids[:2]
    ring = {"size": [20, 30], "counts": [45, 5, 15, 5, 530]}
    annotations = [
        annotation(3, two, bbox=[0.5, 1.5, 20.25, 18.0], area=77.5), annotation(4, one, category_id=12),
        annotation(9, one, segmentation=ring, iscrowd=1, bbox=[2, 5, 2, 5], area=None),
        annotation(6, two, segmentation=square(0, 0, 3)),
    ]  # fmt: skip
    path = write(folder, coco(images, annotations, [{"id": 1, "name": "a"}, {"id": 12, "name": "b"}]))
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    for i in ids:
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png", **({"exif": exif} if i == ids[-1] else {}))
    return path


ANY_IMAGES = {
    "bands.tif": Reading(5, value_range=(0, 900)),
    "pages.tif": Reading(3, ALL_PAGES),  # grey pages: the first alone would become RGB too
    "floats.npy": Reading(4, value_range=(-1.0, 1.0)),
    "colours.tif": Reading(value_range=(0, 40000)),
    "grey.png": Reading(1),
}


def deep_images(folder):
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(ANY_IMAGES, 1)]
    (folder / "images").mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(coco(images, [annotation(i, i) for i in range(1, 6)])))
    places = {name: folder / "images" / name for name in ANY_IMAGES}
    tifffile.imwrite(places["bands.tif"], rng.integers(0, 900, (5, 20, 30), np.uint16), planarconfig="separate")
    tifffile.imwrite(places["pages.tif"], rng.integers(0, 256, (3, 20, 30), np.uint8), photometric="minisblack")
    np.save(places["floats.npy"], rng.normal(size=(4, 20, 30)).astype(np.float32))
    tifffile.imwrite(places["colours.tif"], rng.integers(0, 65536, (20, 30, 3), np.uint16), photometric="rgb")
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(places["grey.png"])


def test_images_of_other_kinds_keep_all_their_values(tmp_path):
    deep_images(tmp_path / "data")
    assert call(pack_dataset, tmp_path / "data", tmp_path / "packed", "--val-fraction", 0.2) == 0
    assert call(pack_dataset, tmp_path / "data", tmp_path / "encoded", "--keep-encoded") == 0
    before = open_data(tmp_path / "data").by_role()
    for folder in ("packed", "encoded"):
        for role, part in open_data(tmp_path / folder).by_role().items():
            for i in range(len(part)):
                name = os.path.basename(part.file_name(i))
                own, packed = (data.read_as(ANY_IMAGES[name]) for data in (before[role], part))
                if (folder, name) == ("packed", "grey.png"):
                    with pytest.raises(InputError, match="the model takes 1 channel.*with --keep-encoded"):
                        packed.image(i)
                    continue
                assert torch.equal(own.image(i), packed.image(i)), name


def text_ids(folder):
    content = coco(
        [{"id": f"p{i}", "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(3)],
        [annotation("x", "p1", category_id="dog")],
        [{"id": "dog", "name": "dog"}],
    )
    write(folder, content)


def pascal(folder):
    voc()(folder, None)
    (folder / "data/VOC2012/ImageSets/Segmentation/val.txt").write_text("a\n")
    return folder / "data"


def packed(data, out, *words):
    assert call(pack_dataset, data, out, *words) == 0
    return out


def same_target(one, two):
    assert one.keys() == two.keys() and one["masks"].size == two["masks"].size
    for key, value in one.items():
        if key == "masks":
            assert torch.equal(value.pixels, two[key].pixels) and torch.equal(value.boxes, two[key].boxes)
        elif isinstance(value, torch.Tensor):
            assert value.dtype == two[key].dtype and torch.equal(value, two[key]), key
        else:
            assert value == two[key]


@pytest.mark.parametrize("kind", [varied, text_ids, pascal])
@pytest.mark.parametrize("words", [[], ["--keep-encoded"]])
def test_samples_and_ground_truth_are_the_same(tmp_path, kind, words):
    data = kind(tmp_path / "data")
    data = tmp_path / "data" if data is None else data
    out = packed(data, tmp_path / "out", *words)
    before, after = open_data(data), open_data(out)
    assert after.label_map == before.label_map
    for one, two in zip(before[:2], after[:2], strict=True):
        assert len(one) == len(two) > 0 and torch.equal(one.sizes, two.sizes)
        assert fingerprint(one) == fingerprint(two) and not two.missing.any()
        for i in range(len(one)):
            (image, target), (other, other_target) = one[i], two[i]
            assert torch.equal(image, other) and other.is_contiguous()
            same_target(target, other_target)
            same_target(one.target(i), two.target(i))
            assert (one.given_id(i), one.file_name(i)) == (two.given_id(i), two.file_name(i))
        truth, other = one.ground_truth(), two.ground_truth()
        results = [
            {
                **{key: a[key] for key in ("image_id", "category_id", "bbox")},
                "score": 0.5,
                "segmentation": b["segmentation"],
            }
            for a, b in zip(truth["annotations"], other["annotations"], strict=True)
        ]
        assert one.with_given_ids(results) == two.with_given_ids(results)
        for kept in (results, results[1:]):
            numbers, others = evaluate_results(truth, kept), evaluate_results(other, kept)
            assert [list(n.stats) for n in numbers.values()] == [list(n.stats) for n in others.values()]
        part = two.subset([0])
        assert (len(part), part.image_id(0)) == (1, one.image_id(0))
        assert part.object_counts()[0] == one.object_counts()[0]
    sample = pickle.loads(pickle.dumps(after.train.subset([0])))[0]
    same_target(sample[1], before.train[0][1])


def test_a_run_on_packed_data_is_the_same_run(tmp_path):
    varied(tmp_path / "data", range(1, 7))
    out = packed(tmp_path / "data", tmp_path / "out")
    for data, folder in ((tmp_path / "data", "one"), (out, "two")):
        assert call(train, *flags(data, tmp_path / folder, "--epochs", 1, "--horizontal-flip", "1")) == 0
    assert differences(tmp_path / "one", tmp_path / "two", epoch=0) == []


def test_a_run_goes_on_with_its_data_packed(tmp_path):
    source, run_folder = many(tmp_path / "npy", 5), tmp_path / "run"
    (tmp_path / "names.json").write_text('{"1": "cat", "2": "dog"}')
    told = ("--label-json-path", str(tmp_path / "names.json"))
    assert call(train, *flags(source, run_folder, "--epochs", 1, "--dataset", "npy", *told)) == 0
    out = packed(source, tmp_path / "out", *told)
    more = ("--resume", "auto", "--epochs", 2, "--allow-changed", "epochs")
    assert call(train, *flags(out, run_folder, *more)) == 0
    assert json.loads((run_folder / "args.json").read_text())["label_json_path"] is None


def test_a_packed_file_holds_no_files_to_keep_encoded(tmp_path, capsys):
    varied(tmp_path / "data")
    out = packed(tmp_path / "data", tmp_path / "out")
    assert (
        call(pack_dataset, out, tmp_path / "two", "--keep-encoded") == 2 and "--keep-encoded" in capsys.readouterr().err
    )
    assert not (tmp_path / "two").exists()


def test_the_command_names_what_it_leaves_out(tmp_path, command):
    varied(tmp_path / "data")
    broken = tmp_path / "data" / "images" / "7.png"
    broken.write_bytes(broken.read_bytes()[:200])
    status, _, error = command(pack_dataset, tmp_path / "data", tmp_path / "out")
    assert status == 1 and f"left out: {broken}" in error
    splits = open_data(tmp_path / "out")
    assert len(splits.train) + len(splits.val) == 3
    assert "1 unreadable image" in splits.train.describe() + splits.val.describe()
    status, _, error = command(pack_dataset, tmp_path / "data", tmp_path / "strict", "--strict")
    assert status == 2 and str(broken) in error and not (tmp_path / "strict").exists()
    status, _, error = command(pack_dataset, tmp_path / "data", tmp_path / "out")
    assert status == 2 and "exists already" in error


def test_too_little_room_is_said_before_writing(tmp_path, monkeypatch, capsys):
    varied(tmp_path / "data")
    monkeypatch.setattr(pack_dataset.shutil, "disk_usage", lambda path: type("", (), {"free": 100}))
    assert call(pack_dataset, tmp_path / "data", tmp_path / "out") == 2
    assert "5,400 bytes are needed, 100 are free" in capsys.readouterr().err and not (tmp_path / "out").exists()


def cut(content):
    return content[:-1]


def short(content):
    return content[:30]


def flipped_index(content):
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


def another_version(content):
    return content.replace(b"data set 1", b"data set 2")


@pytest.mark.parametrize("spoil", [cut, short, flipped_index, another_version, lambda content: b""])
def test_a_damaged_file_is_refused(tmp_path, spoil):
    varied(tmp_path / "data")
    path = packed(tmp_path / "data", tmp_path / "out") / "train.pack"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match="pack the data set again") as caught:
        open_data(tmp_path / "out")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_record_is_seen_when_it_is_read(tmp_path):
    varied(tmp_path / "data")
    path = packed(tmp_path / "data", tmp_path / "out") / "train.pack"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    data_set = open_data(tmp_path / "out").train
    with pytest.raises(InputError, match="the record of .*png is damaged"):
        data_set[0]
    assert len(data_set[1][0]) == 3


def test_a_file_that_is_cut_while_a_run_reads_it_is_told(tmp_path, monkeypatch, capsys):
    varied(tmp_path / "data", range(1, 7))
    out, whole = packed(tmp_path / "data", tmp_path / "out"), step.forward_backward

    def cut(*values):
        os.truncate(out / "train.pack", 4096)
        return whole(*values)

    monkeypatch.setattr(step, "forward_backward", cut)
    assert call(train, *flags(out, tmp_path / "run")) == 2
    said = f"error: {out / 'train.pack'}: has been cut off since it was opened; pack the data set again\n"
    assert capsys.readouterr().err == said


def changed(array, place, value):
    def change(arrays):
        arrays[array] = arrays[array].copy()
        arrays[array][place] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("records", (0, 0), 2**62),
        changed("records", (0, 1), -5),
        changed("records", (0, 2), 2**62),
        changed("records", (0, 0), 0),
        changed("first", 1, 2**60),
        changed("first", -1, 1),
        changed("first", 0, 1),
        changed("sizes", (0, 0), 2**40),
        changed("sizes", (0, 1), -1),
        changed("crops", (0, 2), 2**40),
        changed("crops", (0, 0), -1),
        changed("labels", 0, 9),
        changed("kinds", 0, 7),
        changed("boxes", (0, 0), np.nan),
        lambda arrays: arrays.update(image_ids=arrays["image_ids"][:1]),
        lambda arrays: arrays.update(first=np.zeros(0, int)),
        lambda arrays: arrays.pop("kinds"),
        lambda arrays: arrays.update(kinds=arrays["kinds"].astype(np.int64)),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, change):
    """Also with a right checksum, as a stranger's file can have one."""
    varied(tmp_path / "data", range(1, 7))
    path = packed(tmp_path / "data", tmp_path / "out") / "train.pack"
    content = path.read_bytes()
    place, _, _ = TAIL.unpack(content[-TAIL.size :])
    values, arrays = read_block(content, place, train_utils.data.formats.packed.INDEX)
    arrays = dict(arrays)
    change(arrays)
    index = b"".join(block_pieces(values, arrays))
    digest = train_utils.data.formats.packed.hashlib.sha256(index).digest()
    path.unlink()
    path.write_bytes(content[:place] + index + struct.pack("<QQ32s", place, len(index), digest))
    with pytest.raises(InputError, match="damaged or cut off") as caught:
        PackedRecords(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    varied(tmp_path / "data")
    out = packed(tmp_path / "data", tmp_path / "out")
    (out / "val.pack").unlink()
    assert len(open_data(out, split="train").train)
    with pytest.raises(InputError, match="val.pack: no such file"):
        open_data(out)


def test_one_file_is_a_validation_set_but_not_a_training_set(tmp_path):
    varied(tmp_path / "data")
    path = packed(tmp_path / "data", tmp_path / "out") / "val.pack"
    for split in ("train", "val"):
        assert len(getattr(open_data(path, split=split), split)) == len(open_data(tmp_path / "out").val)
    with pytest.raises(InputError, match="no validation split"):
        open_data(path)
