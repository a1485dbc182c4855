"""maskrcnn.load and what it gives: any form of an image is the same image, and Results are the model's detections."""

import io
import json
import pickle
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import maskrcnn
from tests.tiny_model import NAMES, SIZES, tiny_model, write_checkpoint, write_images
from train_utils.cli.in_python import in_python_words
from train_utils.data.masks import rasterise

pytestmark = pytest.mark.filterwarnings("ignore:.*box_detections_per_img allows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("face")
    write_checkpoint(place / "model.pth")
    write_images(place / "images")
    return place


@pytest.fixture(scope="module")
def detector(folder):
    return maskrcnn.load(folder / "model.pth", device="cpu")


@pytest.fixture(scope="module")
def pixels(folder):
    return np.array(Image.open(folder / "images" / "0.png"))


@pytest.fixture(scope="module")
def results(detector, pixels):
    return detector(pixels, score=0.0)


def same(one, other):
    return all(torch.equal(one.found[key], other.found[key]) for key in one.found)


def test_masks_are_pasted_in_the_models_geometry(detector, results, pixels):
    model = tiny_model()
    model.shared.config = replace(model.config, geometry="half_pixel")
    with torch.no_grad():
        (expected,) = model([torch.from_numpy(pixels).permute(2, 0, 1)])
    found = maskrcnn.Detector(model, detector.label_map, {})(pixels, score=0.0)
    masks = expected["masks"][:, 0] > 0.5
    assert torch.equal(found.masks[:], masks) and masks.any()
    areas = [int(coco_mask.area(result["segmentation"])) for result in found.to_coco()]
    assert areas == [int(coco_mask.area(code)) for code in found.rle()] == masks.sum((1, 2)).tolist()


def test_results_are_the_models_detections(detector, results, pixels):
    with torch.no_grad():
        (expected,) = tiny_model()([torch.from_numpy(pixels).permute(2, 0, 1)])
    for key in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(results, key), expected[key])
    masks = expected["masks"][:, 0] > 0.5
    assert torch.equal(results.masks[:], masks) and results.masks.shape == tuple(masks.shape)
    assert torch.equal(results.masks[1], masks[1]) and torch.equal(results.masks[-1], masks[-1])
    assert torch.equal(torch.stack(list(results.masks)), masks)
    assert np.array_equal(np.asarray(results.masks), masks.numpy())
    assert results.names == [NAMES[(1, 2, 4)[label - 1]] for label in expected["labels"].tolist()]
    again = pickle.loads(pickle.dumps(results))
    assert same(again, results) and again.draw().tobytes() == results.draw().tobytes()
    results.boxes.add_(0)  # no tensor of inference mode: it may be changed


def test_every_form_of_an_image_is_the_same_image(detector, results, pixels, folder):
    path = folder / "images" / "0.png"
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    opaque = np.dstack([pixels, np.full(SIZES[0], 255, np.uint8)])
    for form in (path, str(path), path.read_bytes(), Image.fromarray(pixels), opaque, tensor, pixels[:, ::-1][:, ::-1]):
        assert same(detector(form, score=0.0), results), type(form)
    for form in (pixels / 255, (pixels / 255).astype(np.float32), pixels.astype(">u2") * 257, tensor.double() / 255):
        assert torch.allclose(detector(form, score=0.0).boxes, results.boxes, atol=1e-2)
    grey = detector(pixels[..., 0], score=0.0)
    for form in (pixels[..., :1], Image.fromarray(pixels[..., 0]), tensor[0], tensor[:1]):
        assert same(detector(form, score=0.0), grey)
    deep = pixels[..., 0].astype(np.uint16) * 257
    assert same(detector(Image.fromarray(deep), score=0.0), detector(deep, score=0.0))


def test_many_images_are_as_one_alone_in_any_batch(detector, folder, monkeypatch):
    paths = sorted((folder / "images").iterdir())
    alone = [detector(path) for path in paths]
    for many in (paths, str(folder / "images"), folder / "images", str(folder / "images" / "*.png")):
        assert [same(a, b) for a, b in zip(detector(many), alone, strict=True)] == [True] * len(paths)
    assert detector([]) == []
    taken = []
    found = detector(taken.append(path) or path for path in paths)
    assert taken == [] and same(next(found), alone[0]) and len(taken) == 1
    stack = np.stack([np.array(Image.open(path)) for path in paths[::2]])  # of one size
    assert [same(a, b) for a, b in zip(detector(stack), alone[::2], strict=True)] == [True, True]
    # as on a GPU: images of one padded shape together, in the order they came in
    calls, forward = [], detector.model.forward
    monkeypatch.setattr(detector.model, "forward", lambda some, **k: calls.append(len(some)) or forward(some, **k))
    for module in ("predictor", "detector"):
        monkeypatch.setattr(f"train_utils.prediction.{module}.one_by_one", lambda device: False)
    found = detector(paths, batch_size=2)
    assert calls == [2, 1, 1] and [one.source for one in found] == list(map(str, paths))
    assert all(torch.allclose(a.boxes, b.boxes, atol=1e-3) for a, b in zip(found, alone, strict=True))


def test_masks_as_polygons_and_rles(results):
    decoded = torch.from_numpy(coco_mask.decode(results.rle())).permute(2, 0, 1).bool()
    assert torch.equal(decoded, results.masks[:])
    one = results.to_coco(image_id=7)[0]
    assert one["image_id"] == 7 and one["category_id"] in NAMES and one["segmentation"] == results.rle()[0]
    assert one["bbox"][2:] == pytest.approx((results.boxes[0, 2:] - results.boxes[0, :2]).tolist())
    json.dumps(results.to_coco())
    assert all(3 <= len(loop) <= 5 for polygons in results.polygons(max_points=5) for loop in polygons)
    with pytest.raises(ValueError, match="max_points 2"):
        results.polygons(max_points=2)


def test_polygons_give_their_masks_back(results):
    y, x = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    far = ((x - 13.5) ** 2 + (y - 13.5) ** 2).sqrt()
    shapes = [far < 12, (far < 12) & (far > 6), (x < 6) | ((x > 14) & (y > 9)), far > 99]  # a disk, a ring, two parts
    found = {key: value[:4] for key, value in results.found.items()} | {"mask_probs": torch.stack(shapes).float()}
    drawn = maskrcnn.Results(
        {**found, "boxes": torch.tensor([[5.0, 6, 40, 44]] * 4)}, SIZES[0], results.label_map, "torchvision", None
    )
    polygons = drawn.polygons()
    assert [len(parts) for parts in polygons] == [1, 1, 2, 0] and len(polygons[2][0]) < 12
    disk, ring, parts = (
        coco_mask.decode(rasterise([loop.ravel() for loop in loops], SIZES[0])).astype(bool) for loops in polygons[:3]
    )
    masks = drawn.masks[:].numpy()
    assert (disk == masks[0]).all() and (ring == masks[0]).all() and (parts == masks[2]).all()  # a ring's hole is none
    coarse = [len(loop) for loops in drawn.polygons(max_points=9) for loop in loops]
    assert len(coarse) == 4 and max(coarse) <= 9 < len(polygons[0][0])


def test_results_are_sliced_filtered_and_drawn(detector, results, folder):
    assert len(results[:3]) == 3 and same(results[1], results[[1]]) and same(results[-1], results[len(results) - 1])
    sure = results.filter(score=0.6, classes="Circle")
    assert same(sure, results[(results.scores >= 0.6) & (results.labels == 1)]) and 0 < len(sure) < len(results)
    assert same(detector(results.image(), score=0.6, classes=["circle"]), sure)
    assert [len(one) for one in results[:2]] == [1, 1]
    assert (
        repr(results[:1])
        == f"Results(image 0, 64x48: 1 circle, scores {results.scores[0]:.2f} to {results.scores[0]:.2f})"
    )
    assert repr(results[:0]) == "Results(image 0, 64x48: nothing found)" and results[:0].polygons() == []
    with Image.open(io.BytesIO(results._repr_png_())) as shown:
        assert shown.size == (640, 480) and shown.tobytes() == results.draw().tobytes()
    path = folder / "images" / "1.png"
    assert detector(path).draw(magnify=2).size == (96, 128)
    results.save(folder / "drawn.jpg")
    with pytest.raises(IndexError):
        results[len(results)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((3, 9, 9), np.uint8), r"an array of shape \[3, 9, 9\]; give a path"),
        (torch.zeros(9, 9, 3), r"a tensor of shape \[9, 9, 3\]; give a path"),
        (np.full((9, 9, 3), 255.0), "from 255 to 255: divide it by 255"),
        (np.full((9, 9, 3), np.nan), "from nan to nan: it must be in 0..1"),
        (np.zeros((9, 9), np.int64), "int64: it must be uint8"),
        (np.array([["a"]]), "an array of <U1; give a path"),
        (None, "a NoneType; give a path"),
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        ("nowhere/*.jpg", r"^img_path nowhere/\*.jpg: no such file"),
        (b"GIF89a", "image 0 .bytes."),
    ],
)
def test_what_is_no_image_is_named(detector, value, said):
    with pytest.raises(ValueError, match=said):
        detector(value)


def test_what_is_asked_wrongly_is_named(detector, pixels):
    with pytest.raises(ValueError, match="^classes dog: the model knows circle, square"):
        detector(pixels, classes="dog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maskrcnn, "create_model", lambda *_, **__: tiny_model(classes=90, width=8))
        patch.setattr(maskrcnn, "load_weights", lambda *_: None)
        with pytest.raises(ValueError, match="coco: made for .* classes"):
            maskrcnn.load("coco", names=["cat", "dog"])
        assert len(maskrcnn.load("coco").names) == 80
    with pytest.raises(ValueError, match="config field 'nms' does not exist"):
        maskrcnn.load({**tiny_model().state_dict()}, nms=1)
    assert in_python_words("a/--b.jpg: give --max-size or --resume auto; leave the flag out") == (
        'a/--b.jpg: give max_size or resume="auto"; leave it out'
    )


def test_a_broken_file_among_many(detector, folder):
    broken = folder / "broken.png"
    broken.write_bytes(b"nothing")
    good = folder / "images" / "0.png"
    with pytest.raises(ValueError, match="broken.png"):
        detector([good, broken])
    with pytest.warns(UserWarning, match="left out: .*broken.png"):
        assert [one.source for one in detector([broken, good], strict=False)] == [str(good)]


def test_limits_are_warned_of(folder, pixels):
    few = maskrcnn.load(folder / "model.pth", device="cpu", box_detections_per_img=2)
    with pytest.warns(UserWarning, match="1 image has 2 detections, all that box_detections_per_img allows"):
        few(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few(pixels, score=0.99)


def as_safetensors(state):
    """The bytes of a file of safetensors."""
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    table, data = {}, b""
    for name, tensor in state.items():
        raw = tensor.numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    head = json.dumps({"__metadata__": {"format": "pt"}, **table}).encode()
    return struct.pack("<Q", len(head)) + head + data


def test_weights_in_other_forms(results, pixels, folder):
    state = tiny_model().state_dict()
    sizes = {"min_size": 64, "max_size": 96, "anchor_sizes": (8, 16, 32, 48, 64)}
    few = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 40, "device": "cpu"}
    (folder / "weights.safetensors").write_bytes(content := as_safetensors(state))
    for weights, names in ((state, ["a", "b", "c"]), (folder / "weights.safetensors", None)):
        named = maskrcnn.load(weights, names=names, **sizes, **few)
        assert named.names == (names or ["class 1", "class 2", "class 3"])
        assert same(named(pixels, score=0.0), results)
    with pytest.raises(ValueError, match="made for 3 classes"):
        maskrcnn.load(state, names=["a"])
    for cut in (content[:-4], content[:30], content[:4], content.replace(b"F32", b"F99")):
        (folder / "cut.safetensors").write_bytes(cut)
        with pytest.raises(ValueError, match="cut.safetensors: not a checkpoint or weights file that can be read"):
            maskrcnn.load(folder / "cut.safetensors")
