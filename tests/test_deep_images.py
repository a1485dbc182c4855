"""Images of more than 8 bits, of other channels than RGB, of several pages: decoded as they are, and scaled once."""

import importlib
import io
import json
import shutil
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import maskrcnn
import predict
import train
import validation
from backbone.errors import InputError
from network_files import create_model, load_weights
from network_files.weight_files.weights import for_channels
from tests.coco_folders import annotation, coco
from tests.small_runs import call
from tests.tiny_model import FIELDS, train_flags, write_checkpoint
from tools import check_data, pack_dataset
from train_utils.data.formats.mask_images.label_files import read_labels
from train_utils.data.images import (
    ImageError,
    depth,
    image_size,
    page_count,
    raw_values,
    read_image,
    refuse,
    take_dropped,
)
from train_utils.data.images import reading as reading_of
from train_utils.data.images.depth import is_narrowed
from train_utils.data.images.reading import USUAL, Reading
from train_utils.data.images.shown import shown
from train_utils.data.images.survey import advise
from train_utils.data.in_python.data_sets import data_set_of
from train_utils.data.in_python.images import image_of
from train_utils.data.opening import open_data

Y, X = np.mgrid[:5, :7]
GREY = (X * 300 + Y * 7 + 1).astype(np.uint16)  # [5, 7]
RGB = np.stack([GREY, GREY * 3, 65535 - GREY])  # [3, 5, 7]
RAW = Reading(unscaled=True)
ONE_PLANE = {"extratags": [(284, 3, 1, 2, True)]}


def png(values, colour_type):
    """The bytes of a 16-bit PNG of values [H, W, C]."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, **options):
    """The bytes of a TIFF, one band where nothing else is said."""
    file = io.BytesIO()
    order = values.dtype.byteorder if values.dtype.byteorder in "<>" else "<"
    tifffile.imwrite(file, values, **{"photometric": "minisblack", "byteorder": order, **options})
    return file.getvalue()


def planar(values):
    """A TIFF of one band whose planar configuration is 2, as GDAL writes it, made of one with 1."""
    content = bytearray(tiff(values))
    (first,), place = struct.unpack_from("<I", content, 4), None
    (count,) = struct.unpack_from("<H", content, first)
    for i in range(count):
        tag, kind, _ = struct.unpack_from("<HHI", content, first + 2 + 12 * i)
        place = first + 2 + 12 * i if tag == 277 else place  # SamplesPerPixel, 1, becomes PlanarConfiguration, 2
    struct.pack_into("<HHII", content, place, 284, 3, 1, 2)
    return bytes(content)


HWC = np.moveaxis(RGB, 0, 2)
CASES = {
    "16 bits": (tiff(GREY), GREY),
    "planar, one band": (planar(GREY), GREY),
    "planar, one signed band": (planar(GREY.astype(np.int16)), GREY),
    "signed, big-endian, compressed": (tiff(GREY.astype(">i2"), compression="zlib"), GREY),
    "32 bits, big-endian, compressed": (tiff(GREY.astype(">i4"), compression="zlib"), GREY),
    "floats, big-endian, compressed": (tiff(GREY.astype(">f4"), compression="zlib"), GREY),
    "floats of 64 bits": (tiff(GREY.astype(np.float64)), GREY),
    "white is zero": (tiff(GREY, photometric="miniswhite"), 65535 - GREY),
    "RGB": (tiff(HWC, photometric="rgb"), RGB),
    "RGB, planar": (tiff(RGB, photometric="rgb", planarconfig="separate"), RGB),
    "RGB, planar, big-endian": (tiff(RGB.astype(">u2"), photometric="rgb", planarconfig="separate"), RGB),
    "RGB, planar, compressed": (tiff(RGB, photometric="rgb", planarconfig="separate", compression="zlib"), RGB),
    "RGB, compressed": (tiff(HWC.astype(">u2"), photometric="rgb", compression="zlib"), RGB),
    "RGB, tiled BigTIFF": (tiff(HWC, photometric="rgb", tile=(16, 32), bigtiff=True), RGB),
    "bands that are no colours": (tiff(HWC, planarconfig="contig"), RGB),
    "bands that are no colours, planar": (tiff(RGB, photometric="minisblack", planarconfig="separate"), RGB),
    "the same, compressed": (tiff(RGB, photometric="minisblack", planarconfig="separate", compression="zlib"), RGB),
    "PNG": (png(GREY[..., None], 0), GREY),
    "RGB PNG": (png(HWC, 2), RGB),
    "RGBA PNG": (png(np.concatenate([HWC, HWC[..., :1]], 2), 6), RGB),
    "PNG of grey and alpha": (png(HWC[..., :2], 4), GREY),
}


@pytest.mark.parametrize(("content", "expected"), CASES.values(), ids=CASES)
def test_values_are_those_of_the_file(content, expected):
    """Pillow alone gives noise, black, a negative or the upper bytes for most of these, or no image."""
    image = read_image("an image", content=content, reading=RAW)
    assert image.dtype == torch.float32 and (image.numpy() == np.broadcast_to(expected, (3, 5, 7))).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_sparse_tiff_has_zeros_where_tiles_are_left_out(tmp_path, compression):
    """GDAL leaves out tiles without a value; Pillow decodes the file's header in their place."""
    path, first = tmp_path / "a.tif", np.full((16, 16), 7, np.uint8)
    like = {"shape": (32, 32), "dtype": np.uint8, "tile": (16, 16), "compression": compression}
    tifffile.imwrite(path, iter([first, None, None, first]), photometric="minisblack", **like)
    expected = np.kron(np.eye(2, dtype=np.uint8), first)
    assert (read_image(path).numpy() == expected).all() and (raw_values(path) == expected).all()
    with pytest.raises(InputError, match=r"a.tif: leaves out tiles without a value \(GDAL's SPARSE_OK\); save it"):
        read_labels(path)


@pytest.mark.parametrize("bits", [np.uint8, np.float64])  # Pillow, tifffile
def test_smaller_copies_are_no_pages(tmp_path, bits):
    """As GDAL's overviews and cloud optimised GeoTIFFs have them."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for step, kind in ((1, 0), (2, 1), (4, 1)):
            file.write(np.ones((40 // step, 48 // step), bits), subfiletype=kind, photometric="minisblack")
    take_dropped()
    read_image(tmp_path / "a.tif")
    assert page_count(tmp_path / "a.tif") == 1 and take_dropped() == {}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_of_deep_tiffs(tmp_path, orientation):
    """Upright as Pillow brings 8 bits upright, or as they are stored, which annotations may mean."""
    for values, name in ((GREY, "deep.tif"), ((GREY >> 4).astype(np.uint8), "bytes.tif")):
        tifffile.imwrite(tmp_path / name, values, extratags=[(274, 3, 1, orientation, True)])
    deep, in_bytes = (read_image(tmp_path / name, reading=RAW) for name in ("deep.tif", "bytes.tif"))
    assert (deep.int() >> 4 == in_bytes).all()
    assert image_size(tmp_path / "deep.tif") == deep.shape[1:]
    stored = read_image(tmp_path / "deep.tif", rotate=False, reading=RAW)
    assert (stored[0].numpy() == GREY).all() and image_size(tmp_path / "deep.tif", rotate=False) == GREY.shape


def test_scaling():
    content = tiff(GREY)  # 1..1829
    image = read_image("i", content=content, reading=Reading(value_range=(101, 1101)))
    assert torch.allclose(image[0], torch.from_numpy((GREY.astype(np.float64) - 101) / 1000).clamp(0, 1).float())
    assert torch.equal(read_image("i", content=content), torch.from_numpy(GREY / np.float32(65535)).expand(3, -1, -1))
    own = read_image("i", content=content, reading=Reading(value_range=(100.0,)))
    assert (own.min(), own.max()) == (0, 1)
    take_dropped()
    read_image("i", content=content)
    assert take_dropped() == {"depth": 1}
    for values, why in ((GREY.astype(np.float32), "exceed 0..1"), (np.full((2, 3), np.nan, np.float32), "finite: put")):
        with pytest.raises(ImageError, match=why):
            read_image("i", content=tiff(values))


LARGE = (np.arange(600 * 800) % 65521).astype(np.uint16).reshape(600, 800)
LARGE_RGB = np.stack([LARGE, LARGE // 2, LARGE // 3], 2)


@pytest.mark.parametrize(
    ("name", "values", "channels"),
    [
        ("grey.tif", LARGE, 1),
        ("grey.png", LARGE, 1),
        ("colours.tif", LARGE_RGB, 3),
        ("tiled.tif", LARGE, 1),
        ("floats.npy", LARGE.astype(np.float32), 1),
    ],
)
def test_memory_of_a_large_image(tmp_path, monkeypatch, name, values, channels):
    """Beside what Pillow decodes into, no more than the result: its values are scaled where they lie."""
    for module in (depth, reading_of):
        monkeypatch.setattr(module, "ROWS", 1 << 14)
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, values)
    elif name.endswith(".png"):
        Image.fromarray(values).save(path)
    else:
        how = {"photometric": "rgb"} if channels == 3 else {}
        tifffile.imwrite(path, values, **how, **({"tile": (256, 256)} if name == "tiled.tif" else {}))
    reading = Reading(channels, value_range=(1000, 50000))
    read_image(path, reading=reading)  # what is imported and kept then
    tracemalloc.start()
    image = read_image(path, reading=reading)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = ((values.astype(np.float64) - 1000) / 49000).clip(0, 1).reshape(600, 800, channels).transpose(2, 0, 1)
    assert np.abs(image.numpy() - expected).max() < 1e-6
    assert peak <= 1.3 * image.nbytes


def test_channels(tmp_path):
    stack = np.stack([GREY + k for k in range(5)])  # five pages
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(stack))
    five = Reading(5, "channels", unscaled=True)
    assert page_count(path) == 5 and (read_image(path, reading=five).numpy() == stack).all()
    assert (read_image(path, reading=Reading(page=3, unscaled=True)).numpy() == stack[3]).all()
    for array, name in ((stack, "chw.npy"), (np.moveaxis(stack, 0, 2), "hwc.npy"), (GREY, "grey.npy")):
        np.save(tmp_path / name, array)
        found = read_image(tmp_path / name, reading=Reading(1 if array is GREY else 5, unscaled=True))
        assert (found.numpy() == (GREY if array is GREY else stack)).all() and image_size(tmp_path / name) == (5, 7)
    colours = tmp_path / "colours.png"
    Image.fromarray((HWC >> 8).astype(np.uint8)).save(colours)
    grey = np.asarray(Image.open(colours).convert("L"))
    assert (read_image(colours, reading=Reading(1)).numpy() == grey).all()
    for palette in (Image.open(colours).quantize(8), Image.fromarray(grey > 99)):  # one value, which is no grey
        palette.save(tmp_path / "palette.png")
        of_file = read_image(tmp_path / "palette.png", reading=Reading(1))
        assert torch.equal(image_of(palette, reading=Reading(1)), of_file)
    for file, reading, why in (
        (path, five.__class__(3, "channels"), "has 5 channels, the model takes 3; give --channels 5"),
        (colours, Reading(4), "has 3 channels, the model takes 4; give --channels 3"),
        (tmp_path / "chw.npy", Reading(3), "has 5 channels"),
    ):
        with pytest.raises(InputError, match=f"{file.name}: {why}") as caught:
            read_image(file, reading=reading)
        assert not isinstance(caught.value, ImageError)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\1\0")
    with pytest.raises(ImageError, match=r"bad.npy: cannot be decoded"):
        read_image(tmp_path / "bad.npy")


@pytest.mark.parametrize(
    ("content", "name"), [(b"\0" * 128 + b"DICM", "DICOM"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"SIMPLE  =   T", "FITS")]
)
def test_what_is_not_read_is_named(tmp_path, content, name):
    path = tmp_path / "a.img"
    path.write_bytes(content)
    for read in (read_image, refuse):
        with pytest.raises(InputError, match=f"{name} images are not read; convert it to PNG or TIFF"):
            read(path)
    path.write_bytes(b"II*\0" + b"\xff" * 20)
    with pytest.raises(ImageError, match="begins as a TIFF, but is none that can be read"):
        read_image(path)


def test_each_page_is_an_image_in_prediction(tmp_path):
    weights, path = write_checkpoint(tmp_path / "model.pth"), tmp_path / "stack.tif"
    pages = [Image.fromarray(np.full((40, 48), 60 * k, np.uint8)) for k in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    words = ("--weights-path", weights, "--img-path", path, "--output-dir", tmp_path, "--score", 0, "--pages", "each")
    assert call(predict, *words) == 0
    results = json.loads((tmp_path / "test_result.json").read_text())
    assert {(r["image_id"], r["page"]) for r in results} == {(1, 0), (2, 1), (3, 2)}
    drawn = sorted((tmp_path / "test_result").glob("*.jpg"))
    assert len(drawn) == 3 and len({path.read_bytes() for path in drawn}) == 3


def test_without_tifffile(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    what = r"a TIFF \(7x5, 1 band of 64-bit floating-point values, not compressed\) is not read by Pillow: pip install"
    with pytest.raises(InputError, match=rf"^an image: {what} -r requirements-science.txt"):
        read_image("an image", content=CASES["floats of 64 bits"][0])


def test_first_convolution_for_other_channels():
    """Equal channels give the outputs that the three equal ones of a grey image give."""
    torch.manual_seed(0)
    fields = {**FIELDS, "num_classes": 3, "backbone_width": 16, "norm": "batch"}
    models = {
        n: create_model(**fields, channels=n, image_mean=(0.4,) * n, image_std=(0.2,) * n).eval() for n in (3, 1, 4)
    }
    grey, found = torch.rand(1, 64, 64), {}
    for n, model in models.items():
        lines = load_weights(model, models[3].state_dict())
        assert (f"3 channels become {n}" in lines[-1]) == (n != 3)
        with torch.no_grad():
            found[n] = model([grey.expand(n, -1, -1)])[0]
    for n in (1, 4):
        assert all(torch.allclose(found[3][key], found[n][key], rtol=0, atol=1e-4) for key in ("boxes", "scores"))
        assert (found[3]["scores"] - found[n]["scores"]).abs().max() < 1e-6
    weight = torch.rand(2, 3, 3, 3)
    assert torch.allclose(for_channels(weight, 5).sum(1), weight.sum(1))
    assert (models[1].config.image_mean, create_model(**fields, channels=2).config.image_mean[1]) == (
        (0.4,),
        pytest.approx(0.449),
    )
    for wrong in ({"channels": 2, "image_mean": (0.1, 0.2, 0.3)}, {"value_range": (3, 1)}, {"value_range": "auto"}):
        with pytest.raises(InputError):
            create_model(**fields, **wrong)


def test_shown():
    photo = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert shown(photo) is photo
    assert (shown(photo.float() / 255) == photo).all()
    dark = torch.linspace(0.1, 0.11, 20).reshape(1, 4, 5)
    assert shown(dark).shape == (3, 4, 5) and (shown(dark).min(), shown(dark).max()) == (0, 255)
    five = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(5, 2, 2)
    assert shown(five)[:, 0, 0].tolist() == [0, 1, 2] and shown(five, (4, 2, 0))[:, 0, 0].tolist() == [4, 2, 0]
    assert shown(five[:2])[:, 0, 0].tolist() == [0, 1, 0] and shown(five, (3,))[:, 0, 0].tolist() == [3, 3, 3]


def test_packed_data_keeps_its_depth(tmp_path):
    data = write_data(tmp_path / "data", 2)
    before = open_data(data).train[1][0]
    assert call(pack_dataset, data, tmp_path / "packed") == 0
    shutil.rmtree(data)
    packed = open_data(tmp_path / "packed").train
    assert torch.equal(packed[1][0], before) and before.is_floating_point()
    low, high = advise(packed, USUAL, False, True).fields["value_range"]
    assert 250 < low < 300 and 900 < high < 960


def test_the_doctor_on_values(tmp_path, capsys):
    data = write_data(tmp_path / "data")
    assert call(check_data, data, "--output-dir", tmp_path / "out", "--samples", 2) in (0, 1)
    said, found = capsys.readouterr().out, json.loads((tmp_path / "out" / "check_data.json").read_text())["values"]
    assert "become 0 to 1" in said and "images of more than 8 bits: 8" in said
    assert len(found["histograms"]) == 1 and sum(found["histograms"][0].values()) == 4 * 48 * 48
    assert found["levels"] > 50 and "Values of the pixels" in (tmp_path / "out" / "check_data.html").read_text()
    for path in data.rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) >> 6).astype(np.uint8)).save(path)  # as if scaled by 16 bits
    assert call(check_data, data, "--output-dir", tmp_path / "few", "--samples", 0) == 1
    assert "warning: images of few values: 1" in capsys.readouterr().out


def write_data(folder, count=4):
    """Squares of 900 on 300, 12 bits in files of 16, in COCO's form."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images, objects = [], []
        for i in range(count):
            values = rng.normal(300, 10, (48, 48))
            values[8:28, 10:34] += 600
            Image.fromarray(values.astype(np.uint16)).save(folder / split / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 48})
            place = {"bbox": [10, 8, 24, 20], "area": 480, "segmentation": [[10, 8, 34, 8, 34, 28, 10, 28]]}
            objects.append(annotation(i + 1, i, category_id=1, **place))
        content = coco(images, objects, [{"id": 1, "name": "square"}])
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def test_a_run_on_12_bits(tmp_path, capsys):
    """The range is measured, said, kept, and used by all that comes after."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    words = [
        "--data-path",
        data,
        *train_flags(backbone_width=16, min_size=32, max_size=32, epochs=1, channels=1, lr=1e-5),
    ]
    assert call(train, *words, "--output-dir", run) == 0
    said = capsys.readouterr().out
    assert "become 0 to 1 (0.1% and 99.9% of 4 training images)" in said and "image mean 0." in said
    config = torch.load(run / "model_0.pth", weights_only=True)["config"]
    (low, high), mean, weights = config["value_range"], config["image_mean"], ["--weights-path", run / "model_0.pth"]
    assert 250 < low < 300 and 900 < high < 960 and config["channels"] == len(mean) == 1
    detector = maskrcnn.load(run / "model_0.pth", box_score_thresh=0.0)
    picture = data / "val" / "0.png"
    by_hand = torch.from_numpy(np.asarray(Image.open(picture)).astype(np.float32) - np.float32(low)) / (high - low)
    scores = [
        detector(image, score=0).scores for image in (picture, np.array(Image.open(picture)), by_hand.clamp(0, 1))
    ]
    assert len(scores[0]) and all(torch.allclose(scores[0], other, atol=1e-5) for other in scores[1:])
    assert call(validation, *weights, "--output-dir", tmp_path / "val", "--report") == 0
    assert call(predict, *weights, "--img-path", picture, "--output-dir", tmp_path, "--box-score-thresh", 0) == 0
    assert np.ptp(np.asarray(Image.open(tmp_path / "test_result.jpg").convert("L"))) > 100  # is not all dark
    capsys.readouterr()
    assert call(train, *words, "--output-dir", tmp_path / "stained", "--stain-jitter", 0.1) == 2
    assert "--stain-jitter splits red, green and blue, and images have 1 channel here: leave" in capsys.readouterr().err
    more = ["--epochs", 2, "--allow-changed", "epochs", "--value-range", "auto", "--resume", "auto"]
    assert call(train, *words, "--output-dir", run, *more) == 0
    again = torch.load(run / "model_1.pth", weights_only=True)["config"]
    assert again == config and "become 0 to 1" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["uint8", "float32", "uint16", "path"])
def test_the_range_of_a_torch_data_set_is_measured(kind, tmp_path):
    """Of uint16, as of files; floats are in 0..1 already."""
    pairs = []
    for i in range(2):
        values = np.full((16, 16), 4000, np.uint16)
        values[i + 2 : 12, 3:9] = 1000
        image = {"uint8": np.uint8(values // 16), "float32": values / np.float32(4000)}.get(kind, values)
        if kind == "path":
            image = tmp_path / f"{i}.png"
            Image.fromarray(values).save(image)
        masks = torch.from_numpy(values == 1000)[None]
        pairs.append((image, {"boxes": [[3, i + 2, 9, 12]], "labels": [1], "masks": masks}))
    reading = Reading(1)
    fields, lines, _ = advise(data_set_of(pairs, reading=reading), reading, wants_range=True, wants_mean=False)
    if kind in ("uint16", "path"):
        assert fields == {"value_range": (1000.0, 4000.0)} and "1000 to 4000 become 0 to 1" in lines[0]
    else:
        assert fields == {} and lines == ["value range: the training images have 8 bits and stay as they are"]


def saved(form, **how):
    """The bytes of an 8-bit image in a form."""
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint16).reshape(64, 64, 3).astype(np.uint8)).save(file, form, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "deep"),
    [
        ("PPM", b"P6\n7 5\n65535\n" + RGB.transpose(1, 2, 0).astype(">u2").tobytes()),
        ("SGI", saved("SGI", bpc=2)),
        ("JPEG2000", saved("JPEG2000", no_jp2=True).replace(b"\3\7\1\1\7\1\1\7\1\1", b"\3\x0b\1\1\x0b\1\1\x0b\1\1", 1)),
    ],
)
def test_what_a_format_gives_as_8_bits_alone_is_said(form, deep, tmp_path):
    take_dropped()
    for content, said in ((saved(form), {}), (deep, {"narrowed": 1})):
        (path := tmp_path / "image").write_bytes(content)
        assert read_image(path).dtype == torch.uint8
        assert take_dropped() == said


def test_transparent_colours_of_a_palette_are_counted_where_they_are_used(tmp_path):
    take_dropped()
    for index, said in ((1, {"transparency": 1}), (7, {})):
        image = Image.fromarray(np.eye(9, dtype=np.uint8))
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(tmp_path / "p.png", transparency=index)
        read_image(tmp_path / "p.png")
        assert take_dropped() == said


def test_bits_beyond_8_of_an_avif_are_seen_in_its_header():
    content = saved("AVIF")
    with Image.open(io.BytesIO(content)) as image:
        assert not is_narrowed(image)
        image.fp = io.BytesIO(content.replace(b"\3\x08\x08\x08", b"\3\x0a\x0a\x0a", 1))  # which no decoder takes
        assert is_narrowed(image)
