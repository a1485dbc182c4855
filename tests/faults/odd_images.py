"""The catalogue's images: broken, missing, hostile, of every mode and format."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, features

from tests.faults.catalogue import ERROR, GO_ON, SKIP, Case

HEIGHT, WIDTH = 64, 48  # of image 11
RAMP = (np.arange(HEIGHT)[:, None] * 2 + np.arange(WIDTH)).astype(np.uint8)  # [H, W], 0..173


def encoded(name, image=None, **options) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    (image or Image.fromarray(noise)).save(buffer, name, **options)
    return buffer.getvalue()


def put(content: bytes, name="1.png"):
    return lambda data: data.path(name).write_bytes(content)


def broken(what, content: bytes, said: str, name="1.png") -> Case:
    return Case(f"image: {what}", SKIP, put(content, name), (name, said), of="images")


def refused(what, content: bytes, said: str) -> Case:
    return Case(f"image: {what}", ERROR, put(content), ("1.png: ", said), of="images")


def png_of(width: int, height: int) -> bytes:
    """A whole PNG but for its pixels, of which there are few."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(99))),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def missing(data):
    data.path()


def other_size(data):
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(data.path())


def image_of(seen, i=1) -> np.ndarray:
    """Image i of the data set, uint8 [H, W, 3]."""
    image = seen.data[i][0].permute(1, 2, 0)
    return (image * 255).round().byte().numpy() if image.is_floating_point() else image.numpy()


def turned(stored_size: bool) -> Case:
    """Stored on its side, with an EXIF orientation of 6; the json has the size upright, or as stored."""
    stored = np.rot90(RAMP)  # [W, H]: turned clockwise it is RAMP

    def make(data):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(stored).save(data.path(), exif=exif)
        if stored_size:
            data.images[1].update(height=WIDTH, width=HEIGHT)

    def check(seen):
        assert (image_of(seen) == (stored if stored_size else RAMP)[..., None]).all()

    name = "stored" if stored_size else "upright"
    return Case(f"image: EXIF orientation, json has the size as {name}", GO_ON, make, check=check, of="images")


def mode(what, image, expected, name="1.png", within=0) -> Case:
    """expected uint8 [H, W] or [H, W, 3]."""

    def check(seen):
        found, wanted = image_of(seen).astype(int), expected if expected.ndim == 3 else expected[..., None]
        assert np.abs(found - wanted).max() <= within, (found[0, :5], wanted[0, :5])

    def make(data):
        image.save(data.path(name))

    return Case(f"image: {what}", GO_ON, make, check=check, of="images")


def alpha(*bands, mode):
    return Image.fromarray(np.stack([*bands, 255 - RAMP], axis=2), mode)


def palette():
    image = Image.fromarray(RAMP)
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    return image


RED = np.broadcast_to(np.array([255, 0, 0], dtype=np.uint8), (HEIGHT, WIDTH, 3))
MODES = [
    mode("CMYK", Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)), RED, "1.tif"),
    mode("CMYK JPEG", Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)), RED, "1.jpg", within=3),
    mode("RGBA", alpha(RAMP, RAMP, RAMP, mode="RGBA"), RAMP),
    mode("palette", palette(), np.stack([RAMP, 255 - RAMP, np.full_like(RAMP, 7)], axis=2)),
    mode("grey", Image.fromarray(RAMP), RAMP),
    mode("grey with alpha", alpha(RAMP, mode="LA"), RAMP),
    mode("1 bit", Image.fromarray(RAMP > 80), np.where(RAMP > 80, 255, 0)),
    mode("16-bit grey PNG", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
    mode("16-bit grey TIFF", Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP, "1.tif"),
    mode("floats", Image.fromarray(RAMP.astype(np.float32) / 255), RAMP, "1.tif"),
]


# suffix, loss that its compression makes
USUAL = {"jpg": 12, "png": 0, "bmp": 0, "tif": 0, "gif": 0, "ppm": 0, "tga": 0, "pcx": 0, "sgi": 0}
USUAL |= {"webp": 12} if features.check("webp") else {}
USUAL |= {"jp2": 0} if features.check("jpg_2000") else {}


def each_format(data):
    for number, suffix in enumerate([*USUAL, "mpo"], 20):
        data.images.append({"id": number, "file_name": f"of.{suffix}", "height": HEIGHT, "width": WIDTH})
        more = {"save_all": True, "append_images": [Image.new("L", (WIDTH, HEIGHT))]} if suffix == "mpo" else {}
        Image.fromarray(RAMP).save(data.image_dir / f"of.{suffix}", **more)


def each_format_was_read(seen):
    for i, loss in enumerate([*USUAL.values(), 12], 4):
        assert np.abs(image_of(seen, i).astype(int) - RAMP[..., None]).max() <= loss, seen.data.file_name(i)


def sized(what, height: int, width: int) -> Case:
    def make(data):
        Image.new("RGB", (width, height), (9, 8, 7)).save(data.path())
        data.images[1].update(height=height, width=width)
        box = [0, 0, width, height]
        corners = [[0, 0, width, 0, width, height, 0, height]]
        data.annotations[1].update(bbox=box, area=height * width, segmentation=corners)

    def check(seen):
        image, target = seen.data[1]
        assert tuple(image.shape) == (3, height, width) and int(target["masks"].areas()) == height * width
        assert target["boxes"].tolist() == [[0, 0, width, height]]
        results = [r for r in seen.read("detections.json") if r["image_id"] == 11]
        assert all(r["segmentation"]["size"] == [height, width] for r in results) and results

    return Case(f"image: {what}", GO_ON, make, check=check, of="images")


def named(what, name: str) -> Case:
    def make(data):
        Image.fromarray(RAMP).save(data.path(name))

    def check(seen):
        assert (image_of(seen) == RAMP[..., None]).all()
        assert any(result["file_name"].endswith("/" + name) for result in seen.read("test_result.json"))

    return Case(f"image: {what}", GO_ON, make, check=check, of="images")


def frames(data):
    first, second = Image.fromarray(RAMP), Image.fromarray(255 - RAMP)
    first.save(data.path("1.gif"), save_all=True, append_images=[second])


def first_frame(seen):
    assert (image_of(seen) == RAMP[..., None]).all()


HUGE = struct.pack("<HH", 65535, 65535)
GIF_BOMB = b"GIF89a" + HUGE + b"\0\0\0,\0\0\0\0" + HUGE + b"\0\2\2D\1\0;"
CASES = [
    broken("truncated JPEG", encoded("JPEG")[:-900], "truncated", "1.jpg"),
    broken("truncated PNG", encoded("PNG")[:-900], "truncated"),
    broken("empty file", b"", "the file is empty"),
    broken("text in place of an image", b"no image", "not an image in a known format"),
    broken(
        "grey values that are no numbers",
        encoded("TIFF", Image.fromarray(np.full(RAMP.shape, np.nan, dtype=np.float32))),
        "its values are not finite",
        "1.tif",
    ),
    Case("image: missing", ERROR, missing, ("instances_", "1.png", "1 of its 4 image files", "id 11"), of="json"),
    turned(stored_size=False),
    turned(stored_size=True),
    Case(
        "image: another size than the json's",
        ERROR,
        other_size,
        ("1.png", "48x65", "instances_", "48x64", "image id 11"),
        of="json",
    ),
    *MODES,
    refused("decompression bomb, PNG", png_of(20_000, 20_000), "a decompression bomb"),
    refused("decompression bomb, GIF", GIF_BOMB, "a decompression bomb"),
    refused("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 64\n", "EPS images are not read"),
    refused("FITS", b"SIMPLE  =                    T" + bytes(99), "FITS images are not read"),
    refused("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 images are not read"),
    refused("WMF", b"\xd7\xcd\xc6\x9a\0\0" + bytes(99), "WMF images are not read"),
    refused("Photoshop", b"8BPS\0\1" + bytes(99), "PSD images are not read"),
    Case("image: each usual format", GO_ON, each_format, check=each_format_was_read, of="images"),
    Case("image: animation", GO_ON, frames, check=first_frame, of="images"),
    sized("one pixel", 1, 1),
    sized("1:50, wide", 8, 400),
    sized("1:50, high", 400, 8),
    named("name that is not ASCII", "Grüße 东京 \U0001f600.png"),
    named("name of 255 bytes", "n" * 251 + ".png"),
]
