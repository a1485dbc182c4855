"""Test-time augmentation: averages over mirror images know no left and right, and commands take them."""

import json

import pytest
import torch

import maskrcnn
import validation
from backbone.errors import InputError
from tests.tiny_model import tiny_model, write_checkpoint, write_coco, write_images
from train_utils.checkpoints.checkpoint import load_file
from train_utils.evaluation import mirrored_model
from train_utils.evaluation.mirrored_model import MirroredModel, merged, mirrored
from train_utils.prediction.looking import LookingOptions, trained_flips

ALL = ((2,), (1,), (2, 1))


def close(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one, two, atol=1e-3)


def test_one_view_is_the_model_itself(monkeypatch):
    model, image = tiny_model(), torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    (alone,), (same,) = MirroredModel(model, ())([image]), model([image], paste_masks=False)
    assert alone.keys() == same.keys() and len(same["scores"]) > 5
    assert all(close(alone[key].float(), same[key].float()) for key in same)
    monkeypatch.setattr(mirrored_model, "merged", lambda *_: torch.zeros(0, 4))
    (nothing,) = MirroredModel(model, ALL)([image])
    assert nothing.keys() == same.keys() and all(len(value) == 0 for value in nothing.values())


@pytest.mark.parametrize("axes", ALL)
def test_a_mirror_image_has_the_mirror_images_detections(monkeypatch, axes):
    model, image = tiny_model(), torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
    corners = torch.rand(20, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([60, 40])
    proposals = torch.cat((corners, corners + 20), 1)
    averaging = MirroredModel(model, ALL)
    monkeypatch.setattr(mirrored_model, "merged", lambda *_: proposals)
    (one,) = averaging([image])
    monkeypatch.setattr(mirrored_model, "merged", lambda *_: mirrored(proposals, axes, (64, 96)))
    (two,) = averaging([image.flip(axes)])
    assert len(one["scores"]) > 5 and one["labels"].tolist() == two["labels"].tolist()
    assert close(one["boxes"], mirrored(two["boxes"], axes, (64, 96))) and close(one["scores"], two["scores"])
    assert close(one["mask_probs"], two["mask_probs"].flip(axes))
    (alone,) = model([image], paste_masks=False)
    assert not close(alone["scores"], one["scores"])


def test_proposals_of_views_take_turns_and_near_duplicates_go():
    one = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    two = torch.tensor([[20.0, 0, 30, 10], [0, 0, 10, 9.5], [70, 70, 90, 90]])
    assert merged([one, two], 0.7, 10).tolist() == [one[0].tolist(), two[0].tolist(), one[1].tolist(), two[2].tolist()]
    assert len(merged([one, two], 0.7, 2)) == 2


def test_commands_and_the_detector_average_over_the_flips_of_training(tmp_path, monkeypatch, command):
    weights, image = write_checkpoint(tmp_path / "m.pth", horizontal_flip=0.5), write_images(tmp_path / "images")[0]
    detector = maskrcnn.load(weights)
    plain, averaged = (detector(image, score=0, tta=tta) for tta in (None, "flips"))
    assert not torch.equal(plain.scores[:3], averaged.scores[:3])
    one = detector([image, *write_images(tmp_path / "images")[1:]], score=0, tta="flips")[0]
    assert torch.equal(one.scores, averaged.scores) and torch.equal(one.boxes, averaged.boxes)  # whatever the batch

    content = load_file(weights)
    assert trained_flips(content) == trained_flips({}) == ((2,),)
    assert trained_flips({**content, "args": {"horizontal_flip": 0.5, "vertical_flip": 0.5}}) == ALL
    assert trained_flips({**content, "args": {"horizontal_flip": 0.0, "vertical_flip": 0.1}}) == ((1,),)
    with pytest.raises(InputError, match="--tta flips: training mirrored no image"):
        trained_flips({**content, "args": {"horizontal_flip": 0.0}})
    own = {**content, "args": {"horizontal_flip": 0.0, "vertical_flip": 0.0, "augment": "my.py:f"}}
    assert (
        trained_flips(own) == ((2,),)
        and LookingOptions(tta="flips").notes(content) == LookingOptions().notes(own) == []
    )
    assert "(--augment f)" in LookingOptions(tta="flips").notes({**content, "augment_function": "f"})[0]
    detector.content["args"] = own["args"]
    with pytest.warns(UserWarning, match=r"^tta flips: mirrors left .* is not known \(augment my.py:f\)"):
        detector(image, tta="flips")
    with pytest.raises(InputError, match="tta 'scales' is not known"):
        detector(image, tta="scales")
    exported = torch.nn.Identity()
    exported.config = detector.model.config
    with pytest.raises(InputError, match="an exported file looks at an image once"):
        LookingOptions(tta="flips").looking(exported, {})

    monkeypatch.chdir(tmp_path)
    data = write_coco(tmp_path / "data")
    words = ("--weights-path", weights, "--data-path", data, "--device", "cpu", "--tta", "flips")
    found = []
    for more in (("--tile", 48), ()):  # tiles are looked at in mirror images, too
        status, _, err = command(validation, *words, *more)
        assert status == 0, err
        found.append(json.loads((tmp_path / "detections.json").read_text()))
    assert found[0] and found[0] != found[1]
    of_first = [result["score"] for result in found[1] if result["image_id"] == 10]
    assert sorted(of_first, reverse=True) == sorted(averaged.scores.tolist(), reverse=True)
