"""Large images read in parts: each part is what reading the whole gives there, whatever the file."""

import io
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import maskrcnn
import predict
import validation
from backbone.errors import InputError
from tests.small_runs import call
from tests.test_deep_images import CASES
from tests.tiny_model import write_checkpoint, write_coco
from tools.doctor import finds
from tools.doctor.report.found import Report
from train_utils.data.images import read_image, take_dropped, windows
from train_utils.data.images.reading import Reading
from train_utils.data.images.windows import Windows, open_image
from train_utils.data.opening import open_data
from train_utils.data.tiles.tiling import Tiling
from train_utils.prediction import predictor
from train_utils.prediction import results as of_python_results

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4000, (70, 90), dtype=np.uint16)
BANDS = RNG.integers(0, 256, (5, 70, 90), dtype=np.uint8)


def pillow(image, form, **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def turned(value, form="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = value
    return pillow(Image.fromarray(COLOURS), form, exif=exif)


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


TILED = {"tile": (32, 16), "compression": "zlib"}
RGB_TILED = {"photometric": "rgb", **TILED}
RGB, GREY = Reading(), Reading(1)
ALL, GREY_ALL = Reading(value_range=(100, 3000)), Reading(1, value_range=(0, 9000))
FILES = {
    "png": (pillow(Image.fromarray(COLOURS), "PNG"), RGB),
    "palette.png": (pillow(Image.fromarray(COLOURS).quantize(32), "PNG"), RGB),
    "grey of colours.png": (pillow(Image.fromarray(COLOURS), "PNG"), GREY),
    "alpha.png": (pillow(Image.fromarray(np.concatenate([COLOURS, COLOURS[..., :1]], 2)), "PNG"), Reading(4)),
    **{f"turned {i}.jpg": (turned(i), RGB) for i in range(2, 9)},
    "turned.tif": (turned(6, "TIFF"), RGB),
    "deep.png": (pillow(Image.fromarray(DEEP), "PNG"), ALL),
    "tiled.tif": (tiff(COLOURS, photometric="rgb", **TILED), RGB),
    "tiled, big.tif": (tiff(DEEP, bigtiff=True, byteorder=">", predictor=True, **TILED), ALL),
    "percent.tif": (tiff(DEEP, **TILED), Reading(value_range=(98.0,))),
    "grey of 16 bits.tif": (tiff(np.stack([DEEP, DEEP, DEEP // 2], 2), photometric="rgb", **TILED), GREY_ALL),
    "strips.tif": (tiff(DEEP, rowsperstrip=7), ALL),
    "planes.tif": (tiff(BANDS, photometric="rgb", planarconfig="separate", **TILED), Reading(5)),
    "RGB and more.tif": (tiff(np.moveaxis(BANDS, 0, 2), photometric="rgb", **TILED), RGB),
    "RGB and one more.tif": (tiff(np.moveaxis(BANDS[:4], 0, 2), extrasamples=("unspecified",), **RGB_TILED), RGB),
    "RGB and one more of 16 bits.tif": (tiff(np.stack([DEEP] * 4, 2), extrasamples=("unspecified",), **RGB_TILED), ALL),
    "transparent.tif": (tiff(np.moveaxis(BANDS[:4], 0, 2), extrasamples=("unassalpha",), **RGB_TILED), RGB),
    "opaque of 16 bits.tif": (
        tiff(np.stack([DEEP] * 3 + [DEEP * 0 + 65535], 2), extrasamples=("unassalpha",), **RGB_TILED), ALL
    ),
    "transparent.png": (pillow(Image.fromarray(np.concatenate([COLOURS, COLOURS[..., :1]], 2)), "PNG"), RGB),
    "white is zero.tif": (tiff(DEEP, photometric="miniswhite", **TILED), ALL),
    "second page": (tiff(np.stack([DEEP, DEEP // 2]), photometric="minisblack", **TILED), ALL),
}  # fmt: skip


@pytest.fixture(autouse=True)
def every_image_is_large(monkeypatch):
    monkeypatch.setattr(windows, "LARGE", 30)


@pytest.mark.parametrize("name", [*FILES, *(f"case {name}" for name in CASES), "array.npy"])
def test_parts_are_those_of_the_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr(windows, "KEPT", 3000)
    monkeypatch.setattr(windows, "ROWS_AT_ONCE", 2000)
    path = tmp_path / f"{name.replace(' ', '_')}"
    if name.endswith(".npy"):
        np.save(path, np.moveaxis(COLOURS, 2, 0)[:, ::2])
        reading = RGB
    elif name.startswith("case "):
        path.write_bytes(CASES[name.removeprefix("case ")][0])
        reading = Reading(value_range=(-5.0, 2000.0))
    else:
        content, reading = FILES[name]
        path = path.with_suffix(".tif") if "." not in name else path
        path.write_bytes(content)
        path = f"{path}#1" if name == "second page" else path
    take_dropped()
    expected = read_image(path, reading=reading)
    said = take_dropped()
    found = pickle.loads(pickle.dumps(open_image(path, Reading(**{**vars(reading), "by_windows": True}))))
    assert isinstance(found, Windows) and found.shape == expected.shape
    _, height, width = expected.shape
    for _ in range(8):
        (y1, y2), (x1, x2) = (sorted(RNG.choice(side + 1, 2, replace=False)) for side in (height, width))
        part = found[:, y1:y2, x1:x2]
        assert part.dtype == expected.dtype and torch.equal(part, expected[:, y1:y2, x1:x2])
    k = -(-max(height, width) // 20)
    small, means = found.overview(20), torch.nn.functional.avg_pool2d(expected[:, :k, :k].float()[None], k)[0, :, 0, 0]
    assert small.shape[1:] == (-(-height // k), -(-width // k)) and small.dtype == expected.dtype
    assert (small[:, 0, 0] - means).abs().max() <= (0.5 if small.dtype == torch.uint8 else 1e-6)
    assert take_dropped() == said


def test_five_bands_of_16_bits_are_refused_in_parts_too(tmp_path):
    path = tmp_path / "1.tif"
    path.write_bytes(tiff(np.stack([DEEP] * 5, 2), extrasamples=("unspecified",) * 2, **RGB_TILED))
    for read in (read_image, lambda path, reading: open_image(path, replace(reading, by_windows=True))[:, :9, :9]):
        with pytest.raises(InputError, match="has 5 channels, the model takes 3; give --channels 5"):
            read(path, reading=ALL)


def test_commands_read_tiles_in_parts(tmp_path, monkeypatch, capsys):
    """The same detections as of whole images; Pillow's limit of pixels counts without --tile alone."""
    weights, data = write_checkpoint(tmp_path / "model.pth"), write_coco(tmp_path / "data")
    folder, names = tmp_path / "large", ("a.png", "b.tif")
    folder.mkdir()
    for name in names:
        content = pillow(Image.fromarray(COLOURS), "PNG") if name == "a.png" else tiff(DEEP, **TILED)
        (folder / name).write_bytes(content)
    png = folder / "a.png"
    (folder / "c.png").write_bytes(png.read_bytes()[: png.stat().st_size // 2])
    words = ("--weights-path", weights, "--score", 0, "--device", "cpu")
    found = {}
    for large in (30, 10**6):
        monkeypatch.setattr(windows, "LARGE", large)
        out = tmp_path / str(large)
        assert call(predict, *words, "--img-path", folder, "--output-dir", out, "--tile", 64) == 1
        said = capsys.readouterr()
        assert "c.png: cannot be decoded" in said.err and "2 of 3 images predicted" in said.out
        on_data = ("--weights-path", weights, "--data-path", data, "--output-dir", out, "--tile", 64, "--report")
        assert call(validation, *on_data) == 0
        tensors_of = maskrcnn.load(weights)
        tensors = tensors_of(str(folder / "a.png"), score=0, tile=64)
        numbers = json.loads((out / "record_mAP.json").read_text())["segm"]
        found[large] = [json.loads((out / "test_result.json").read_text()), numbers, tensors.boxes.tolist()]
    assert found[30] == found[10**6] and {r["image_id"] for r in found[30][0]} == {1, 2}
    monkeypatch.setattr(windows, "LARGE", 30)
    in_python = {"tile": 64, "device": "cpu", "batch_size": 2}
    with pytest.warns(UserWarning, match="tiles have 40 detections"):
        of_python = maskrcnn.validate(weights, data, **in_python, report=True, output_dir=tmp_path)
    assert of_python["segm"] == found[30][1]["stats"] and of_python["report"].exists()
    broken = data / "images" / "0.png"
    broken.write_bytes(broken.read_bytes()[:2000])  # its size can be read, but no tile
    with pytest.warns(UserWarning, match=r"not evaluated: .*0\.png: cannot be decoded"):
        of_python = maskrcnn.validate(weights, data, **in_python, output_dir=tmp_path)
    about = json.loads((tmp_path / "record_mAP.json").read_text())["about"]
    assert of_python["images"] == about["images"] == 3 and (about["of"], about["unreadable"]) == (4, 1)
    assert "0.png" in about["unreadable_images"][0] and about["results_left_out"] == 0
    assert of_python["files"][-1].name == "detections.json"
    with pytest.raises(InputError, match=r"0\.png: cannot be decoded"):
        maskrcnn.validate(weights, data, strict=True, **in_python)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    monkeypatch.setattr(predictor, "OVERVIEW", 90)
    Image.fromarray(np.tile(COLOURS, (3, 3, 1))).save(tmp_path / "bomb.png")
    words = (*words, "--img-path", tmp_path / "bomb.png", "--output-dir", tmp_path)
    assert call(predict, *words) == 2
    assert "take it out of the data, or look at it in tiles (--tile)" in capsys.readouterr().err
    assert call(predict, *words, "--tile", 128, "--magnify", 1, "--write", "coco") == 0
    assert (tmp_path / "data_set" / "images" / "bomb.png").stat().st_size == (tmp_path / "bomb.png").stat().st_size
    assert "1 image is drawn smaller" in capsys.readouterr().out
    with Image.open(tmp_path / "test_result.jpg") as drawn:
        assert drawn.size == (90, 70)
    monkeypatch.setattr(of_python_results, "OVERVIEW", 90)
    bomb = tensors_of(tmp_path / "bomb.png", tile=128)
    with pytest.warns(UserWarning, match=r"bomb\.png: is drawn at 90x70, too large as a whole"):
        overview = np.array(bomb.draw(boxes=False, captions="none", magnify=1))
    with Image.open(tmp_path / "test_result.jpg") as drawn:
        assert len(bomb) and np.abs(overview - np.array(drawn).astype(int)).mean() < 30
    monkeypatch.setattr(windows, "MOST_DECODED", 1000)
    assert call(predict, *words, "--tile", 128) == 2
    assert "pixels would be decoded at once: save it as a tiled TIFF" in capsys.readouterr().err
    monkeypatch.setattr(windows, "MOST", 1000)
    with pytest.raises(InputError, match=r"a\.png: 90x70 is more than results can count"):
        open_image(folder / "a.png", Reading(by_windows=True))


@pytest.mark.filterwarnings("ignore:.*box_detections_per_img allows")
def test_an_image_that_breaks_off_within_its_tiles_is_left_out(tmp_path):
    detector = maskrcnn.load(write_checkpoint(tmp_path / "model.pth", width=8), "cpu")
    content, good, bad = FILES["png"][0], tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(content)
    bad.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"left out: .*bad\.png: cannot be decoded"):
        (found,) = detector([bad, good], score=0, strict=False, tile=64)
    assert found.source == str(good) and len(found)
    with pytest.raises(ValueError, match=r"bad\.png: cannot be decoded"):
        detector([bad, good], tile=64)


def test_the_doctor_opens_what_training_in_tiles_opens(tmp_path, monkeypatch):
    data = open_data(write_coco(tmp_path / "data"), "val").val
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 3 of the 4 have more than twice as many
    for tiling, errors in ((None, 3), (Tiling(64), 0)):
        options, of_images = SimpleNamespace(workers=0, tiling=tiling), finds.Finds()
        Report.open_images(SimpleNamespace(splits={"val": data}, options=options, of_images=of_images))
        assert len(of_images.texts(finds.ERROR)) == errors


def test_tiles_of_a_tiff_are_read_alone(tmp_path):
    """A part reads the tiles that it lies in; those above it are let go."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(DEEP, **TILED))
    image = Windows(str(path), ALL, True, DEEP.shape)
    image[:, 0:10, 0:10]
    assert list(image._store.kept) == [0]
    image[:, 30:40, 10:20]
    assert sorted(image._store.kept) == [0, 1, 6, 7]
    image[:, 64:70, 0:10]
    assert list(image._store.kept) == [12] and image._store.room == windows.KEPT - 32 * 16 * DEEP.itemsize


def test_a_file_is_decoded_once(tmp_path):
    """A copy on a device, which is what a model looks at, and the image itself, which is drawn, share what is open."""
    (tmp_path / "a.png").write_bytes(FILES["png"][0])
    image = open_image(tmp_path / "a.png", Reading(by_windows=True))
    copy = image.to("cpu", non_blocking=True)
    assert copy[:, :5, :5].shape == (3, 5, 5) and copy._store is image._store
