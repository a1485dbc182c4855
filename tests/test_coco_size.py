"""The generator of COCO-size files: they are valid, the same each time, and of the size asked for."""

import json

import pytest

from benchmarks import coco_size
from train_utils.data.formats.coco.reading import read_annotations
from train_utils.evaluation.numbers import evaluate_results


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    folder = tmp_path_factory.mktemp("val")
    return folder, *coco_size.write_val(folder, images=40, detections=30)


def test_annotations_are_whole_and_as_many_as_coco_has(val):
    packed = read_annotations(val[1])
    assert len(packed) == 40 and not packed.skipped and len(packed.categories) == 80
    assert len(packed.annotation_ids) == round(40 * 860_001 / 118_287) and packed.iscrowd.sum() == 3
    raw = json.loads(val[1].read_text())["annotations"]
    assert isinstance(raw[-1]["segmentation"]["counts"], list) and raw[-1]["iscrowd"] == 1
    owners = [a["image_id"] for a in raw]
    assert sum(a != b for a, b in zip(owners, owners[1:], strict=False)) > len(set(owners))  # not grouped


def test_areas_and_boxes_fit_the_masks(val):
    packed = read_annotations(val[1])
    for row in range(len(packed)):
        size = packed.sizes[row].tolist()
        for k in range(packed.first[row], packed.first[row + 1]):
            mask = coco_size.coco_mask.decode(packed.masks.rle(k, size))
            x, y, w, h = packed.boxes[k]
            if packed.masks.first_part[k + 1] - packed.masks.first_part[k] == 1:  # several may overlap
                assert abs(int(mask.sum()) - packed.areas[k]) <= 2 * (w + h)
            assert mask[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1].sum() == mask.sum()


def test_detections_find_some_of_the_objects(val):
    results = json.loads(val[2].read_text())
    assert len(results) == 40 * 30
    evaluated = evaluate_results(json.loads(val[1].read_text()), results)
    assert all(0.2 < result.stats[1] < 0.95 for result in evaluated.values())


def test_the_same_seed_writes_the_same_files(val, tmp_path):
    again = coco_size.write_val(tmp_path, images=40, detections=30)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in val[1:]]
    one, other = (coco_size.write_train(tmp_path / str(seed), 10, seed) for seed in (0, 1))
    assert one.read_bytes() != other.read_bytes()


def test_command_writes_image_files(tmp_path, capsys):
    coco_size.main([str(tmp_path), "--images", "7", "--image-files"])
    assert "instances_train2017.json: " in capsys.readouterr().out
    assert len(list((tmp_path / "train2017").iterdir())) == 7
