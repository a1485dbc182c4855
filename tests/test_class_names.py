"""Classes that are the same by name, but have other ids or capitals in another json, or in a model's data."""

import json

import pytest

from backbone.errors import InputError
from tests.coco_folders import annotation, coco, write_image
from train_utils.data.labels import LabelMap
from train_utils.data.opening import open_data
from train_utils.evaluation.numbers import evaluate_results
from train_utils.prediction.results import labels_of

TRAIN = {1: "red", 2: "green"}


def make(folder, **splits):
    """Jsons of {split: {id: name}}, an image and an object of each class in each."""
    for split, names in splits.items():
        images = [{"id": 1, "file_name": f"{split}.png", "height": 20, "width": 30}]
        objects = [annotation(i, category_id=c, bbox=[2, 3, 10 + i, 10]) for i, c in enumerate(names, 1)]
        objects.append({**annotation(99, category_id=list(names)[-1]), "segmentation": []})
        content = coco(images, objects, [{"id": i, "name": name} for i, name in names.items()])
        write_image(folder / "images" / f"{split}.png")
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "val",
    [{5: "red", 6: "green"}, {0: "red", 1: "green"}, {1: "green", 2: "red"}, {1: "Red", 2: "GREEN"}, {"r": "red"},
     {5: "red ", 9: "blue"}],
)  # fmt: skip
def test_val_gets_the_ids_of_training_by_its_names(tmp_path, val):
    splits = open_data(make(tmp_path, train=TRAIN, val=val))
    names = ["red", "green", "blue"] if 9 in val else ["red", "green"]
    assert splits.label_map.names == tuple(names) and splits.label_map == splits.val.label_map
    of_val = [names.index(name.strip().lower()) + 1 for name in val.values()]
    assert splits.val[0][1]["labels"].tolist() == of_val
    assert "matched by name" in splits.val.describe() and "matched by name" not in splits.train.describe()
    truth = splits.val.ground_truth(unmasked=True)
    assert [a["category_id"] for a in truth["annotations"]] == [
        splits.label_map.to_category(label) for label in [*of_val, of_val[-1]]
    ]
    results = [{**a, "score": 0.9} for a in truth["annotations"]]
    assert evaluate_results(truth, results, ["bbox"])["bbox"].stats[0] == pytest.approx(1)
    # results get val's own ids
    assert [r["category_id"] for r in splits.val.with_given_ids(results)] == [*val, list(val)[-1]]


def test_data_is_matched_with_the_classes_of_a_model(tmp_path):
    label_map = LabelMap.from_categories({1: "red", 2: "green", 3: "blue"})
    val = open_data(make(tmp_path, val={1: "Green", 2: "blue"}), "val", label_map).val
    assert val[0][1]["labels"].tolist() == [2, 3] and val.ground_truth()["categories"][0] == {"id": 2, "name": "green"}
    found = val.with_given_ids([{"image_id": 1, "category_id": i} for i in (1, 2, 3)])
    assert [result["category_id"] for result in found] == [1, 2]  # val has no red, and its 1 is green


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        ({1: "red", 2: "red"}, {5: "red"}, "'red' has several ids"),
        ({1: "red"}, {5: "red", 6: "Red"}, "'red' has several ids"),
        (TRAIN, {1: "green", 2: "blue"}, "category 2 is 'green' in"),
        (TRAIN, {1: "blue"}, "category 1 is 'red' in"),
    ],
)
def test_what_names_do_not_tell_is_an_error(tmp_path, train, val, said):
    with pytest.raises(InputError) as error:
        open_data(make(tmp_path, train=train, val=val))
    assert said in str(error.value) and "make them agree" in str(error.value)


def test_equal_ids_and_names_stay_though_names_are_not_unique(tmp_path):
    splits = open_data(make(tmp_path, train={1: "red", 2: "red"}, val={1: "red", 2: "red", 3: "blue"}))
    assert splits.label_map.names == ("red", "red", "blue") and "matched" not in splits.val.describe()


def test_a_name_that_several_classes_have_in_any_capitals_means_all_of_them():
    labels = LabelMap.from_categories({1: "Cell", 2: "dog", 3: "cell"})
    assert labels_of(labels, "cell") == labels_of(labels, ["CELL"]) == [1, 3] and labels_of(labels, "dog") == [2]
    assert labels_of(LabelMap.from_categories({1: "cell", 2: "cell"}), ["cell"]) == [1, 2]
