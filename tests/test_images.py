"""read_image: every mode becomes RGB uint8, upright; what cannot be read is an ImageError of one line."""

import io
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, features

from backbone.errors import InputError
from train_utils.data.images import UPRIGHT, ImageError, image_size, read_image, refuse
from train_utils.io.silence import without_warnings

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50  # [2, 3]
# What Pillow's own images hold that cannot be decoded in full.
UNREADABLE = {
    "broken.png",
    "broken_data_stream.png",
    "derived_empty.jpg",
    "derived_text.jpg",
    "derived_truncated.jpg",
    "derived_truncated_flower.jpg",
    "truncated_end_chunk.png",
    "truncated_image.png",
    "unbound_variable.jp2",
}
BOMBS = {"badwidth.bmp", "decompression_bomb.gif"}


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY).convert("P"), GREY),
        (Image.fromarray(np.stack([GREY, 255 - GREY], 2), "LA"), GREY),
        (Image.fromarray(np.stack([GREY] * 3 + [255 - GREY], 2), "RGBA"), GREY),
        (Image.fromarray(GREY > 120), np.where(GREY > 120, 255, 0)),
    ],
    ids=["grey", "palette", "grey with alpha", "RGBA", "1 bit"],
)
def test_modes(tmp_path, image, expected):
    found = read_image(save(image, tmp_path / "a.png"))
    assert found.dtype == torch.uint8 and found.shape == (3, 2, 3) and found.is_contiguous()
    assert (found.numpy() == expected).all()


def test_floats_and_cmyk(tmp_path):
    found = read_image(save(Image.fromarray(GREY.astype(np.float32) / 255), tmp_path / "a.tif"))
    assert found.shape == (3, 2, 3) and (found.numpy() == GREY.astype(np.float32) / 255).all()
    cmyk = Image.new("CMYK", (3, 2), (0, 255, 255, 0))
    assert read_image(save(cmyk, tmp_path / "b.tif"))[:, 0, 0].tolist() == [255, 0, 0]


def test_values_without_a_known_scale(tmp_path):
    path = save(Image.fromarray(GREY.astype(np.int32) * 1000), tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"exceed 0\.\.65535.*value_range"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])  # Pillow turns the latter itself
@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
def test_exif_orientation(tmp_path, orientation, suffix):
    """The eight images that a camera stores of the same scene come out the same."""
    upright = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(upright)
    if orientation != 1:
        stored = stored.transpose(undo.get(orientation, UPRIGHT[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / f"a.{suffix}", exif=exif)
    assert (read_image(path)[0].numpy() == upright).all()
    assert image_size(path) == (3, 4) and image_size(path, rotate=False) == stored.size[::-1]
    assert (read_image(path, rotate=False)[0].numpy() == np.asarray(stored)).all()


def jpeg(size=(64, 48)):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"hi", "not an image"), (jpeg()[:-500], "truncated"), (None, "no such file")],
)
def test_unreadable_files_are_named(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image,) if content and len(content) > 9 else (read_image, image_size):
        with pytest.raises(ImageError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ") and reason in str(error.value)
        assert "\n" not in str(error.value) and error.value.path == str(path)
        assert isinstance(error.value, InputError)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"\xd7\xcd\xc6\x9a\0\0" + bytes(40), "WMF"),
    ],
)
def test_formats_that_run_other_code_are_refused(tmp_path, monkeypatch, content, name):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    monkeypatch.setitem(Image.OPEN, name, (None, Image.OPEN[name][1]))  # its code is not even called
    for read in (read_image, image_size, refuse):
        with pytest.raises(InputError, match=f"a.jpg: {name} images are not read; convert") as caught:
            read(path)
        assert not isinstance(caught.value, ImageError)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="is a directory"):
        read_image(tmp_path)


def test_odd_images(shared_data):
    folder = shared_data / "odd_images" / "pillow"
    unreadable = set()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".tsv", ".Pillow"):
            continue
        if path.name in BOMBS:
            for read in (read_image, image_size, refuse):
                with pytest.raises(InputError, match=f"{path.name}: a decompression bomb") as caught:
                    read(path)
                assert not isinstance(caught.value, ImageError)
            continue
        refuse(path)
        try:
            image = read_image(path)
        except ImageError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            unreadable.add(path.name)
            continue
        assert image.dtype in (torch.uint8, torch.float32) and image.shape[0] == 3
        assert image_size(path) == tuple(image.shape[1:]), path.name
    assert unreadable - {"rot1mir1.avif"} == UNREADABLE
    assert "rot1mir1.avif" not in unreadable or not features.check("avif")


def test_lab(shared_data):
    folder = shared_data / "odd_images" / "pillow"
    found = read_image(folder / "hopper.Lab.tif").float()
    assert (found - read_image(folder / "hopper.png").float()).abs().mean() < 4


def test_turned_hoppers_are_alike(shared_data):
    """Pillow's portrait, stored in seven orientations, is the same image within JPEG's loss."""
    folder = shared_data / "odd_images" / "pillow"
    upright = read_image(folder / "hopper.jpg").float()
    for orientation in range(2, 9):
        turned = read_image(folder / f"hopper_orientation_{orientation}.jpg").float()
        assert (turned - upright).abs().mean() < 8, orientation


def test_threads_that_read_images_leave_the_filters_of_warnings_as_they_were():
    came, gone = threading.Event(), threading.Event()

    def outlive():
        with without_warnings:
            came.set()
            gone.wait(10)
            warnings.warn("of a decoder", stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        before, thread = list(warnings.filters), threading.Thread(target=outlive)
        with without_warnings:
            thread.start()
            came.wait(10)
        gone.set()
        thread.join()
        assert shown == [] and warnings.filters == before
