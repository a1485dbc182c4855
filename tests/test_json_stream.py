"""Large jsons read piece by piece: the same as json.load, wherever pieces and batches end."""

import gc
import io
import json
import zlib

import pytest

from train_utils.io import json_stream
from train_utils.io.json_stream import Unusual, no_collection, read_lists

DOCUMENT = {
    "info": {"year": 2017, "nested": [[1, -2.5e3], {"a": None}], "text": 'a "quoted" }],[ é \\ \u4e2d'},
    "number": 12345678901,
    "flag": True,
    "images": [{"id": i, "name": "é" * i, "list": [0.1] * (i % 4)} for i in range(11)],
    "empty": [],
    "annotations": [{}],
    "categories": [],
}
KEYS = ("images", "annotations", "categories")


def streamed(text: bytes, keys=KEYS):
    read = {key: [] for key in keys}
    pieces = []
    order = read_lists(io.BytesIO(text), {key: read[key].extend for key in keys}, pieces.append)
    assert b"".join(pieces) == text
    return order, read


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize("spelling", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_lists_are_whole(monkeypatch, chunk, spelling):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    monkeypatch.setattr(json_stream, "BATCH", 3)
    for before in (b"", b"\xef\xbb\xbf", b" \n"):
        text = before + json.dumps(DOCUMENT, **spelling).encode() + b"\n "
        assert streamed(text) == (list(DOCUMENT), {key: DOCUMENT[key] for key in KEYS})


def test_batches_are_of_the_size_set(monkeypatch):
    monkeypatch.setattr(json_stream, "BATCH", 4)
    sizes = []
    takers = {"images": lambda batch: sizes.append(len(batch))}
    read_lists(io.BytesIO(json.dumps(DOCUMENT).encode()), takers, lambda data: None)
    assert sizes == [4, 4, 3]


WHOLE = json.dumps({key: [{"a": [1]}, {"a": [2]}] for key in KEYS})


@pytest.mark.parametrize("chunk", [1, 5, 10**6])
@pytest.mark.parametrize(
    "text",
    [
        *(WHOLE[:end] for end in range(0, len(WHOLE), 5)),
        WHOLE + "x",
        WHOLE + "{}",
        WHOLE.replace(", {", " {", 1),
        WHOLE.replace("}]", "},]", 1),
        WHOLE.replace("}]", "}}", 1),
        WHOLE.replace("1", "1x", 1),
        WHOLE.replace('"images"', "images"),
        WHOLE.replace("images", "annotations", 1),
        WHOLE[:-1] + ', "images": []}',
        WHOLE[:-1] + ", 5: 1}",
        WHOLE.replace("images", "scenes"),
        WHOLE.replace('{"a": [1]}', "1"),
        WHOLE.replace('{"a": [1]}', "[1]"),
        WHOLE.replace(":", ";", 1),
        WHOLE.replace('{"a": [1]}, ', "", 1).replace('[{"a": [2]}]', '{"a": [2]}', 1),
        "[1]",
        "1",
        '"images"',
        WHOLE.replace("1", "9" * 5000),
        WHOLE.replace("[1]", "[" * 10**5 + "]" * 10**5),
    ],
    ids=lambda text: str(zlib.crc32(text.encode())) if isinstance(text, str) else None,
)
def test_anything_else_is_unusual(monkeypatch, chunk, text):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    with pytest.raises(Unusual):
        streamed(text.encode())


def test_what_is_not_utf8_is_unusual():
    with pytest.raises(Unusual):
        streamed(WHOLE.encode().replace(b"a", b"\xff", 1))


def test_collection_is_back_after_a_fault():
    assert gc.isenabled()
    with pytest.raises(KeyError), no_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
