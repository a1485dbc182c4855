"""Exported files: each finds in its runtime what the model finds, in Python, in both commands and without torch."""

import copy
import io
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from unittest.mock import Mock, patch

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F

import maskrcnn
import predict
import validation
from benchmarks.runtimes import __main__ as runtimes
from benchmarks.runtimes import side
from network_files import InputError
from network_files.heads.detections import Detections
from network_files.operators.instance_masks import paste_masks
from network_files.transform import resized_size
from tests import small_runs
from tests.small_runs import ROOT, call
from tests.tiny_model import tiny, tiny_model, write_checkpoint, write_coco
from tools import export as tool
from tools import visualise_stages
from train_utils.checkpoints.checkpoint import default_label_map
from train_utils.prediction.exporting import export, int8, proof, whole_image
from train_utils.prediction.exporting.graph import CoreGraph
from train_utils.prediction.exporting.int8 import Int8
from train_utils.prediction.exporting.onnx_file import to_onnx
from train_utils.prediction.predictor import detect
from train_utils.prediction.runtimes import exported_model

FORMS = {"model.onnx": "onnx", "model_openvino": "openvino"}
FILES = {"torch_export": "model.pt2", "onnx": "model.onnx", "openvino": "model_openvino"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and its file in each format, for any batch: all of one trace, which takes most of the time."""
    place = tmp_path_factory.mktemp("exported")
    weights = write_checkpoint(place / "model.pth")
    os.utime(weights, (1e9, 1e9))  # in 2001
    detector = maskrcnn.load(weights, "cpu")
    program = export.trace(detector.model, None)
    with patch.object(export, "trace", return_value=program):
        assert detector.export(place / "model.pt2", batch=None)["boxes"] == 0
    made = export.to_onnx(program)
    with patch.object(export, "trace"), patch.object(export, "to_onnx", lambda program: copy.deepcopy(made)):
        found = detector.export(place / "model_openvino", batch=None)
        assert 0 < found["boxes"] < 1e-3 and found["detections"] > 100 and found["images"] == 4
        words = "--weights-path", weights, "--output-dir", place, "--batch", "dynamic"
        assert call(tool, *words, "--check", write_coco(place / "data")) == 0
    assert sorted(path.name for path in place.iterdir()) == sorted(["data", "model.pth", *FILES.values()])
    return place


@pytest.fixture(scope="module", params=FILES)
def exported(request, folder):
    """(the detector of the checkpoint, that of a file)."""
    return maskrcnn.load(folder / "model.pth", "cpu"), maskrcnn.load(folder / FILES[request.param])


@pytest.mark.filterwarnings("ignore:.*that box_detections_per_img allows")
def test_a_file_finds_what_the_model_finds(exported):
    images = [torch.rand(3, *size) for size in ((30, 30), (64, 200), (97, 50))]
    for one, other in zip(*(detector(images, score=0.0) for detector in exported), strict=True):
        assert len(one) == len(other) > 5 and one.names == other.names
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3) and torch.allclose(one.scores, other.scores, atol=1e-5)
        assert one.rle() == other.rle()


def test_a_data_yaml_names_data_and_an_image_does_not():
    assert tool.is_data("d/data.yaml") and tool.is_data("d/data.json") and not tool.is_data("d/1.png")


def test_a_file_knows_what_its_checkpoint_knows(exported):
    model, file = exported
    assert file.names == model.names and file.model.config == model.model.config
    assert file.content.keys() == model.content.keys() and file.content["epoch"] == 0
    assert file.model.about["names"] == ["background", "circle", "square", "big triangle"]
    assert file.model.about["proof"]["images"] >= 4 and torch.__version__.startswith(
        file.model.about["versions"]["torch"]
    )


def test_a_batch_of_any_size_is_taken_at_once(folder):
    images = [torch.rand(3, 64, 80) for _ in range(3)]
    for name in FILES.values():
        model = maskrcnn.load(folder / name).model
        together, alone = model(images), [model([image])[0] for image in images]
        for one, other in zip(together, alone, strict=True):
            assert len(one["boxes"]) and all(torch.allclose(one[key], other[key], atol=1e-4) for key in one)


def test_predict_and_validation_take_a_file(folder, tmp_path, command):
    found = {}
    for name in ("model.pth", "model.onnx"):
        of_weights, place = ("--weights-path", folder / name, "--device", "cpu"), tmp_path / name
        status, out, _ = command(
            predict, *of_weights, "--img-path", folder / "data/images/0.png", "--output-dir", place
        )
        assert status == 0 and f"weights: {folder / name}: epoch 0 of a run" in out
        (line,) = (line for line in out.splitlines() if line.startswith("weights: "))
        exported = time.strftime(", exported %Y-%m-%d", time.localtime((folder / name).stat().st_mtime))
        assert ", 2001-09-09 " in line and (exported in line) == (name == "model.onnx")
        status, out, _ = command(validation, *of_weights, "--data-path", folder / "data", "--output-dir", place)
        assert status == 0 and ("\nloss " in out) == (name == "model.pth")
        results, stats = (json.loads((place / name).read_text()) for name in ("test_result.json", "record_mAP.json"))
        found[name] = [[r["file_name"], r["segmentation"]] for r in results], stats["segm"]["stats"]
    assert found["model.pth"] == found["model.onnx"] and found["model.pth"][0]


@pytest.fixture
def two_cores(monkeypatch):
    """As on two cores, where any two images are many."""
    monkeypatch.setattr(exported_model, "IMAGES_EACH", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # a fork of a process with OpenMP's threads waits


@pytest.mark.parametrize("name", FORMS)
def test_two_of_many_images_are_in_work_at_once(folder, two_cores, name):
    paths, detector = sorted((folder / "data/images").iterdir()), maskrcnn.load(folder / name)
    alone = [detector(path, score=0.0) for path in paths]
    opened, together, most, inside = detector.model.open_again, threading.Barrier(2, timeout=60), [], []

    def open_again(in_flight):
        run = opened(in_flight)

        def met(*inputs):
            inside.append(1)
            together.wait()  # four images, always two at once
            most.append(len(inside))
            together.wait()
            inside.pop()
            return run(*inputs)

        return met if in_flight > 1 else run

    detector.model.open_again = open_again
    found = detector(paths, score=0.0)
    assert detector.model.in_flight == 2 and max(most) == 2
    assert [one.source for one in found] == list(map(str, paths)) and len(found[0]) > 5
    for one, other in zip(alone, found, strict=True):
        assert one.boxes.equal(other.boxes) and one.scores.equal(other.scores) and one.rle() == other.rle()
    assert len(detector(paths[0], score=0.0)) == len(alone[0]) and detector.model.in_flight == 1


def test_files_are_the_same_for_any_number_in_flight(folder, tmp_path, command, two_cores):
    found = {}
    for at_once in (1, 2):
        words = "--weights-path", folder / "model.onnx", "--batch-size", at_once, "--output-dir", tmp_path / "out"
        status, out, _ = command(predict, *words, "--img-path", folder / "data/images")
        assert status == 0 and ("2 images are in work at once, each on 1 of 2 threads" in out) == (at_once == 2)
        validated, out, _ = command(validation, *words, "--data-path", folder / "data")
        assert validated == 0 and ("2 images are in work at once" in out) == (at_once == 2)
        found[at_once] = small_runs.files_of(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert found[1] == found[2] and {"3.jpg", "test_result.json", "detections.json"} <= found[1].keys()


def test_an_image_that_the_runtime_fails_in_is_named(folder, tmp_path, command, two_cores):
    opened = onnxruntime.InferenceSession

    class Failing(opened):
        def run(self, names, inputs):
            if inputs["sizes"][0].tolist() == [64, 64]:  # the last one
                raise RuntimeError("no such kernel")
            return super().run(names, inputs)

    words, data = ("--weights-path", folder / "model.onnx", "--output-dir", tmp_path), folder / "data"
    with patch.object(onnxruntime, "InferenceSession", Failing):
        status, out, err = command(predict, *words, "--img-path", data / "images")
        assert status == 2 and f"error: {data / 'images/3.png'}: the file's runtime fails (no such kernel)" in err
        assert [name in out for name in ("0.png: ", "1.png: ", "2.png: ", "3.png: ")] == [True] * 3 + [False]
        status, _, err = command(validation, *words, "--data-path", data)
        assert status == 2 and f"error: {data / 'images/3.png'}: the file's runtime fails (no such kernel)" in err
        with pytest.raises(InputError, match=r"3.png: the file's runtime fails .*; .*, batch_size 1 takes one image"):
            maskrcnn.load(folder / "model.onnx")(data / "images")


def test_forty_lines_run_it_without_torch(folder):
    image, block = folder / "data/images/1.png", "import sys; sys.modules['torch'] = None; import runpy; "
    code = f"{block}sys.argv[:] = ['', *sys.argv[1:]]; runpy.run_path({str(ROOT / 'docs/run_onnx.py')!r})"
    command = [sys.executable, "-c", code, folder / "model.onnx", image, "0.05"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = maskrcnn.load(folder / "model.pth", "cpu")(image, score=0.05)
    areas = results.masks[:].sum((1, 2)).tolist()
    boxes = [" ".join(f"{value:.1f}" for value in box) for box in results.boxes.tolist()]
    rows = zip(results.names, results.scores.tolist(), boxes, areas, strict=True)
    expected = [f"{name} {score:.3f} at {box}, {area} pixels" for name, score, box, area in rows]
    assert done.stdout.splitlines() == expected and expected


def test_the_script_follows_a_fixed_size_and_refuses_other_images(folder, tmp_path, capsys):
    file, path = onnx.load(folder / "model.onnx"), tmp_path / "other.onnx"
    (entry,) = file.metadata_props
    about = json.loads(entry.value)

    def said(image, config, **more):
        entry.value = json.dumps({**about, **more, "config": {**about["config"], **config}})
        onnx.save(file, path)
        with patch.object(sys, "argv", ["run_onnx.py", str(path), str(image), "0.05"]):
            runpy.run_path(str(ROOT / "docs" / "run_onnx.py"))
        return [float(x) for x in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]

    for name, config in ((0, {"fixed_size": [64, 160]}), (1, {"fixed_size": [64, 160]}), (0, {"size_divisible": 64})):
        image = folder / "data" / "images" / f"{name}.png"
        printed = said(image, config)
        results = maskrcnn.load(path)(image, score=0.05)
        rows = zip(results.scores.tolist(), results.boxes.tolist(), strict=True)
        assert (
            printed == pytest.approx([x for score, box in rows for x in (score, *box)], abs=0.06) and len(results) > 5
        )
    for config, more in (
        ({"channels": 5}, {}),
        ({"value_range": [0, 99]}, {}),
        ({}, {"batch": 2}),
        ({}, {"photo": "uint8"}),
    ):
        with pytest.raises(SystemExit, match="takes other than one prepared RGB image of 8 bits"):
            said(image, config, **more)


@pytest.mark.parametrize(
    "fields",
    [
        {"geometry": "half_pixel", "norm": "frozen", "box_nms_thresh": 0.3, "channels": 5},
        {"geometry": "half_pixel_masks", "mask_head_layers": 2},
        {"variant": "v2", "box_head_convs": 1, "rpn_score_thresh": 0.5},
        {"backbone": "mobilenet_v2", "backbone_width": 8, "roi_sampling_ratio": 1, "mask_roi_size": 7},
        {"norm": "group", "fixed_size": (64, 96), "box_detections_per_img": 3, "rpn_post_nms_top_n_test": 7},
    ],
    ids=str,
)
@torch.inference_mode()
def test_the_graph_is_the_model(fields):
    model = tiny(**{"backbone_width": 16, "box_score_thresh": 0.2} | fields).eval()
    images = [torch.rand(fields.get("channels", 3), *size) for size in ((50, 60), (64, 40))]
    batch = model.transform.batch(images, None, False, torch.float32)
    outputs = CoreGraph(model)(batch.images, torch.tensor(batch.sizes, dtype=torch.float32))
    expected = model(images, paste_masks=False)
    boxes, labels, scores, masks, image = outputs
    detections = Detections(torch.bincount(image, minlength=2).tolist(), boxes, labels, scores, masks)
    assert image.equal(image.sort().values)
    for found, one in zip(model.to_original(detections, batch, paste=False), expected, strict=True):
        assert len(found["boxes"]) > 2 and found["labels"].equal(one["labels"])
        atol = {"boxes": 1e-4, "scores": 1e-6, "mask_probs": 1e-5}
        assert all(torch.allclose(found[key], one[key], atol=most) for key, most in atol.items())


@torch.inference_mode()
def test_nothing_found_is_empty():
    model = tiny_model(score_bias=-50.0)
    model.roi_heads.score_thresh = 0.9
    found = CoreGraph(model)(torch.zeros(1, 3, 64, 64), torch.tensor([[60.0, 50.0]]))
    assert [tuple(output.shape) for output in found] == [(0, 4), (0,), (0,), (0, 28, 28), (0,)]


def test_a_file_that_finds_other_things_is_not_written(folder, tmp_path):
    detector, made = maskrcnn.load(folder / "model.pth", "cpu"), onnx.load(folder / "model.onnx")  # of other weights
    del made.metadata_props[:]
    with torch.no_grad():
        detector.model.roi_heads.box_predictor.bbox_pred.bias += 0.1
    with patch.object(export, "trace"), patch.object(export, "to_onnx", return_value=made):
        for name in ("model.onnx", "model_openvino"):
            with pytest.raises(InputError, match=f"{name}: not written, as it finds other things .*: boxes differ by"):
                detector.export(tmp_path / name, batch=None)
    assert list(tmp_path.iterdir()) == []


def test_check_takes_paths_and_folders(folder, tmp_path, monkeypatch):
    detector, seen = maskrcnn.load(folder / "model.pth", "cpu"), []
    monkeypatch.setattr("train_utils.prediction.detector.export_model", lambda *given: seen.append(given[4]) or Mock())
    images = folder / "data" / "images"
    for check in (str(images), [images / "0.png", torch.rand(3, 8, 8)], images / "0.png", ()):
        detector.export(tmp_path / "m.onnx", check=check)
    assert [len(given) for given in seen] == [4, 2, 1, 0] and seen[0][0].shape == seen[2][0].shape == (3, 48, 64)
    with pytest.raises(InputError, match="^check nowhere: no such file or folder"):
        detector.export(tmp_path / "m.onnx", check="nowhere")


def test_the_command_says_each_stage_takes_a_folder_of_images_and_leaves_no_empty_folder(folder, tmp_path, command):
    made, place = onnx.load(folder / "model.onnx"), tmp_path / "new" / "inner"
    del made.metadata_props[:]
    words = "--weights-path", folder / "model.pth", "--output-dir", place, "--batch", "dynamic", "--check"

    def translated(program):
        log = logging.getLogger(export.TRANSLATOR)
        assert not log.filter(logging.makeLogRecord({"msg": "torchvision is not installed. Skipping %s"}))
        assert log.filter(logging.makeLogRecord({"msg": "something else"}))
        return copy.deepcopy(made)

    with patch.object(export, "trace"), patch.object(export, "to_onnx", translated):
        with patch.object(proof, "LIMITS", {name: -1.0 for name in proof.LIMITS}):
            status, _, err = command(tool, *words, folder / "data/images")
        assert status == 2 and "not written" in err and list(tmp_path.iterdir()) == []
        status, out, _ = command(tool, *words, folder / "data/images")
    assert status == 0 and [path.name for path in place.iterdir()] == ["model.onnx"]
    stages = [line.partition(" (after ")[0] for line in out.splitlines() if " (after " in line]
    images = len(list((folder / "data/images").iterdir())) + 4
    compared = f"comparing the file with the model on {images} images"
    assert stages == ["tracing the model", "translating the trace to ONNX", compared]
    assert not logging.getLogger(export.TRANSLATOR).filters
    (tmp_path / "none").mkdir()
    (tmp_path / "none/other.txt").touch()
    assert "no data set found" in command(tool, *words, tmp_path / "none")[2]
    assert "--check nothing.jpg: no such file" in command(tool, *words, "nothing.jpg")[2]


class Scaled(torch.nn.Module):
    """A convolution whose weight is scaled, as a norm that is folded scales it."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(64, 64, 3)

    def forward(self, images, sizes):
        return (F.conv2d(images, self.conv.weight * 2, self.conv.bias),) * 5


def test_no_weight_is_computed_in_a_file():
    """What quantises a file would take it for an activation, with one range for all channels."""
    program = torch.export.export(Scaled(), (torch.zeros(1, 64, 5, 5), torch.zeros(1, 2)))
    graph = to_onnx(program).graph
    (node,) = (node for node in graph.node if node.op_type == "Conv")
    assert node.input[1] in {tensor.name for tensor in graph.initializer}


def check_layers_in_8_bits(model):
    """Weights are of 7 bits, with a scale for each channel; no layer is rounded before its activation."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {n.output[0]: n.input for n in model.graph.node if n.op_type == "DequantizeLinear"}
    seen = Counter()
    for node in model.graph.node:
        if node.op_type in int8.LAYERS and node.input[1] in weights:
            weight, scale = (constants[name] for name in weights[node.input[1]][:2])
            assert (
                weight.dtype == np.int8 and np.abs(weight.astype(int)).max() == 64 and scale.shape == weight.shape[:1]
            )
            seen[node.op_type] += 1
        if node.op_type in int8.LAYERS and any(part in node.input[1] for part in int8.PREDICTORS):
            assert node.input[1] not in weights
        if node.op_type == "Relu":
            assert made_by[node.input[0]].op_type != "DequantizeLinear"
    assert seen["Conv"] > 10 and seen["Gemm"] == 2


@pytest.mark.parametrize("name", ["model.onnx", "model_openvino"])
def test_8_bits_are_proven_by_their_ap(folder, tmp_path, name):
    detector, whole = maskrcnn.load(folder / "model.pth", "cpu"), onnx.load(folder / "model.onnx")
    del whole.metadata_props[:]
    aps = [0.6, 0.5956, 0.6, 0.594]  # of the model and of the file, twice
    eight = Int8([torch.rand(3, 64, 64) for _ in range(2)], lambda model: {"segm": aps.pop(0)})
    args = (
        detector.model,
        detector.label_map,
        detector.content,
        export.Export(tmp_path / name, FORMS[name], None, eight),
    )
    with patch.object(export, "trace"), patch.object(export, "to_onnx", return_value=whole):
        assert export.export_model(*args).line == "proof in 8 bits: segm AP 0.5956, of the model 0.6000"
        weights, floats = (sum(f.stat().st_size for f in files_of(place / name)) for place in (tmp_path, folder))
        assert weights < 0.6 * floats
        if name == "model.onnx":
            check_layers_in_8_bits(onnx.load(tmp_path / name))
        (tmp_path / name).rename(tmp_path / "kept")
        with pytest.raises(InputError, match="segm AP falls by 0.0060; more images to calibrate on than 2 may help"):
            export.export_model(*args)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "kept").rename(tmp_path / name)
    found = maskrcnn.load(tmp_path / name)(torch.rand(3, 64, 64), score=0.0)
    assert len(found) > 5


def run_nodes(op, inputs, output, values):
    """What the nodes give in onnxruntime and in OpenVINO; inputs: (type, shape) by name, output: (name, type, rank)."""
    info, name = onnx.helper.make_tensor_value_info, output[0]
    takes = [info(key, kind, shape) for key, (kind, shape) in inputs.items()]
    gives = info(name, output[1], [None] * output[2])
    graph = onnx.helper.make_graph(op.taken(), "graph", takes, [gives])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return [(session.run(None, one)[0], compiled(one)[0]) for one in values]


@pytest.mark.parametrize("fields", [{"min_size": 800, "max_size": 1333}, {"fixed_size": (96, 128)}], ids=str)
def test_a_whole_image_is_resized_to_the_size_that_the_model_takes(fields):
    config, op = tiny(**fields).config, whole_image._Nodes()
    name = whole_image._resized(op, config, "side")
    sides = [(49, 60), (60, 49), (41, 41), (480, 640), (3000, 11), (5, 9), (1253, 194), (2613, 3801), (62, 62)]
    found = run_nodes(
        op, {"side": (whole_image.INT64, [2])}, (name, whole_image.INT64, 1), [{"side": np.int64(s)} for s in sides]
    )
    for one, both in zip(sides, found, strict=True):
        size = resized_size(*one, config.min_size[-1], config.max_size, config.fixed_size)
        assert [tuple(values) for values in both] == [size, size]


@pytest.mark.parametrize("geometry", ["torchvision", "half_pixel"])
def test_a_whole_image_has_the_masks_that_the_model_pastes(geometry):
    op, draw, (height, width) = whole_image._Nodes(), torch.Generator().manual_seed(0), (37, 53)
    boxes = torch.rand(60, 4, generator=draw) * torch.tensor([60.0, 40, 30, 30]) - 5
    boxes[:, 2:] += boxes[:, :2]
    boxes[0] = torch.tensor([3.0, 4, 3, 9])  # without area
    probs = torch.rand(60, 7, 7, generator=draw)
    name = whole_image._pasted(op, geometry, "boxes", "probs", 7, "side")
    inputs = {"boxes": (1, ["D", 4]), "probs": (1, ["D", 7, 7]), "side": (whole_image.INT64, [2])}
    values = {"boxes": boxes.numpy(), "probs": probs.numpy(), "side": np.int64([height, width])}
    none = values | {"boxes": values["boxes"][:0], "probs": values["probs"][:0]}
    found, empty = run_nodes(op, inputs, (name, whole_image.UINT8, 3), [values, none])
    expected = paste_masks(probs, boxes, (height, width), geometry)[:, 0]
    assert all(masks.shape == (0, height, width) for masks in empty) and (expected > 0.5).sum() > 1000
    for masks in found:
        different = torch.from_numpy(masks).bool() != (expected > 0.5)
        assert masks.dtype == np.uint8 and not (different & ((expected - 0.5).abs() > 1e-5)).any()


@pytest.mark.parametrize(("name", "photo"), [("whole.onnx", "uint8"), ("whole_openvino", "float")])
def test_a_file_takes_an_image_as_it_is(folder, tmp_path, name, photo, command):
    detector, made = maskrcnn.load(folder / "model.pth", "cpu"), onnx.load(folder / "model.onnx")
    del made.metadata_props[:]
    with patch.object(export, "trace"), patch.object(export, "to_onnx", return_value=made):
        images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((49, 97), (20, 130))]
        found = detector.export(tmp_path / name, check=images, postprocess=photo)
    assert found["detections"] > 100 and found["alone"] == 0 and found["images"] == 6
    file = maskrcnn.load(tmp_path / name)
    for one, other in zip(*(of(images, score=0.5) for of in (detector, file)), strict=True):
        assert len(one) > 5 and one.rle() == other.rle() and torch.allclose(one.boxes, other.boxes, atol=1e-3)
    whole = file.model(images[:1])[0]["masks"]
    assert whole.shape[1:] == (1, 49, 97) and set(whole.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(InputError, match="min_size: is built into a file of (--)?postprocess"):
        maskrcnn.load(tmp_path / name, min_size=32)
    with pytest.raises(InputError, match="mask_threshold: 0.5 is built into the file"):
        file(images[0], mask_threshold=0.3)
    with pytest.raises(InputError, match="tile: a file of (--)?postprocess gives whole masks"):
        file(images[0], tile=32)
    if photo == "uint8":
        with pytest.raises(InputError, match="the file takes uint8; export it with (--)?postprocess float"):
            file(torch.rand(3, 30, 30))


def test_postprocess_goes_with_one_image_of_onnx_or_openvino(folder, tmp_path, command):
    words = "--weights-path", folder / "model.pth", "--output-dir", tmp_path, "--postprocess", "uint8"
    for more in (("--batch", "dynamic"), ("--format", "torch_export")):
        status, _, err = command(tool, *words, *more)
        assert (
            status == 2
            and err.count("\n") == 1
            and "uint8 or float, of one image at a time, with format onnx or" in err
        )
    config = tiny(value_range=(0.0, 4095.0))
    with pytest.raises(InputError, match="the model knows images of more than 8 bits"):
        export.export_model(config, default_label_map(4), {}, export.Export(tmp_path / "m.onnx", photo="uint8"))


def test_8_bits_are_calibrated_on_images_that_show_something(monkeypatch):
    """The mask branch has no range where nothing is found, and the mean of the ranges would be none."""
    monkeypatch.setattr(int8, "detect", lambda model, images, device: [{"boxes": images[0].unique()[1:]}])
    model, nothing, something = tiny_model(), torch.zeros(3, 32, 32), torch.rand(3, 32, 32)
    calibration = int8._Calibration(model, [nothing, something, nothing])
    assert calibration.get_next()["images"].shape == (1, 3, 64, 64) and calibration.get_next() is None
    assert int8._Calibration(model, [something], 2).get_next()["images"].shape == (2, 3, 64, 64)  # of --batch 2
    with pytest.raises(InputError, match="int8: the model finds nothing in 2 images to calibrate on"):
        int8._Calibration(model, [nothing, nothing])


def files_of(place):
    return [place] if place.is_file() else list(place.iterdir())


def test_the_benchmark_of_runtimes_runs_a_file_and_compares(folder, tmp_path, capfd, monkeypatch):
    np.save(tmp_path / side.PHOTO, np.zeros((3, 40, 40), np.uint8))
    (tmp_path / "model.onnx").symlink_to(folder / "model.onnx")
    (tmp_path / side.PHOTOS).symlink_to(folder / "data/images")
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n2\n"))
    side.main(["onnx", str(tmp_path), "resnet18"])
    out, err = capfd.readouterr()
    count, took, of_two = out.splitlines()
    assert int(count) >= 0 and len(took.split()) == len(of_two.split()) == 3 and "one image is in work" in err
    first, turns = (
        {"torchvision": [4.0], "onnx": [1.0]},
        {"torchvision": [(2.0, 3.0, 900.0)], "onnx": [(1.0, 1.5, 450)]},
    )
    (tmp_path / side.WEIGHTS).write_bytes(bytes(2_000_000))
    runtimes.report(tmp_path, first, turns)
    rows = capfd.readouterr().out.splitlines()[2:]
    assert rows[0] == "| torchvision, eager | 2.000 | 1.00 | 3.00 | 4.0 s | 1.00 | 900 MiB | 1.00 | 2 MB |"
    assert rows[1].startswith("| ONNX Runtime | 1.000 | 0.50 | 1.50 | 1.0 s | 0.25 | 450 MiB | 0.50 | ")
    runtimes.report_folder(4, {"torchvision": (8.0, 12.0, 900.0), "onnx": (4.0, 6.0, 450.0)})
    rows = capfd.readouterr().out.splitlines()[3:]
    assert rows[0] == "| torchvision, eager | 0.500 | 1.00x |  | 3.00 | 900 MiB | 1.00 |"
    assert rows[1] == "| ONNX Runtime | 1.000 | 2.00x |  | 1.50 | 450 MiB | 0.50 |"


def compared(change):
    """The proof of a model's detections and of the same, changed."""
    model = tiny_model()
    image = torch.rand(3, 64, 64)
    one = detect(model, [image], torch.device("cpu"))[0]
    return proof._compared(one, change({key: value.clone() for key, value in one.items()}), model)


def test_the_proof_sees_each_difference():
    assert compared(lambda found: found).faults() == []
    first = torch.arange(40) == 0
    moved = compared(lambda found: found | {"boxes": found["boxes"] + 0.02 * first[:, None]})
    assert moved.faults() == [f"boxes differ by {moved.boxes:.2g}"] and 0.019 < moved.boxes < 0.021
    assert (
        "scores differ" in compared(lambda found: found | {"scores": found["scores"] * (1 - 0.01 * first)}).faults()[0]
    )
    assert compared(lambda found: found | {"labels": found["labels"] % 3 + 1}).alone > 40
    assert compared(lambda found: {key: value[1:] for key, value in found.items()}).alone == 1
    assert compared(lambda found: {key: value[:-1] for key, value in found.items()}).alone == 0  # the least of 40
    assert compared(lambda found: found | {"mask_probs": found["mask_probs"] * float("nan")}).faults()
    nothing = compared(lambda found: {key: value[:0] for key, value in found.items()})
    assert nothing.alone == 39


def test_a_mistake_is_one_line(folder, tmp_path, command):
    def line(script, *words):
        status, _, err = command(script, *words)
        assert status == 2 and err.count("\n") == 1
        return err

    of_file, image = ("--weights-path", folder / "model.onnx"), ("--img-path", folder / "data/images/0.png")
    assert "box_score_thresh: is built into an exported file" in line(
        predict, *of_file, *image, "--box-score-thresh", 0.3
    )
    assert "an exported file shows no stages" in line(visualise_stages, *of_file, "--index", 0)
    assert "is of an exported file" in line(tool, *of_file, "--output-dir", tmp_path)
    assert "--batch 0: give a number" in line(tool, "--weights-path", folder / "model.pth", "--batch", 0)
    words = "--weights-path", folder / "model.pth", "--format", "torch_export", "--int8"
    assert "--int8 goes with onnx or openvino" in line(tool, *words)
    of_image = "--weights-path", folder / "model.pth", "--int8", "--check", folder / "data/images/0.png"
    assert "a file in 8 bits is proven by its AP; give data" in line(tool, *of_image)
    (tmp_path / "other.onnx").write_bytes(b"nothing")
    assert "its runtime cannot open it" in line(predict, "--weights-path", tmp_path / "other.onnx", *image)
    assert "no such file" in line(predict, "--weights-path", tmp_path / "none.onnx", *image)
    with patch.dict(sys.modules, {"onnxruntime": None}):
        assert "pip install -r requirements-export.txt" in line(predict, *of_file, *image)
    with pytest.raises(InputError, match="give .onnx"):
        maskrcnn.load(folder / "model.pth", "cpu").export(tmp_path / "model.tflite")


def test_boxes_that_overlap_by_just_the_threshold_stay(folder):
    """In OpenVINO, too, whose NMS drops them: its threshold is the next number."""
    boxes, scores = np.float32([[[0, 0, 4, 4], [0, 0, 4, 2]]]), np.float32([[0.9, 0.8]])
    kept = torch.ops.maskrcnn.kept_scores(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)
    assert kept.tolist() == scores.tolist()
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    own = next(t for t in model.graph.initializer if t.name == node.input[3])
    assert onnx.numpy_helper.to_array(own) == np.float32(0.7) and float(np.float32(0.7)) < 0.7
    nudged = export.nudge_thresholds(copy.deepcopy(model))
    node = next(node for node in nudged.graph.node if node.op_type == "NonMaxSuppression")
    own = next(t for t in nudged.graph.initializer if t.name == node.input[3])
    assert onnx.numpy_helper.to_array(own) == np.nextafter(np.float32(0.7), np.float32(1))
