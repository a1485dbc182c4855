"""Large jsons read piece by piece: the same as json.load, wherever pieces and batches end."""

import gc
import io
import json
import zlib

import pytest

from train_utils.io import json_stream
from train_utils.io.json_stream import RepeatedKey, Unusual, no_collection, object_of, read_lists

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


@pytest.mark.parametrize("portion", [50, 10**6])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize("spelling", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_lists_are_whole(monkeypatch, chunk, spelling, portion):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    monkeypatch.setattr(json_stream, "BATCH", 3)
    monkeypatch.setattr(json_stream, "PORTION", portion)
    for before in (b"", b"\xef\xbb\xbf", b" \n"):
        text = before + json.dumps(DOCUMENT, **spelling).encode() + b"\n "
        assert streamed(text) == (list(DOCUMENT), {key: DOCUMENT[key] for key in KEYS})


def batches_of(text):
    batches = []
    read_lists(io.BytesIO(text.encode()), {"images": batches.append}, len)
    return batches


def test_batches_are_of_the_sizes_set(monkeypatch):
    text = json.dumps(DOCUMENT, ensure_ascii=False)
    assert list(map(len, batches_of(text))) == [10, 1]  # the last one shows by what follows where it ends
    monkeypatch.setattr(json_stream, "PORTION", 100)
    batches = batches_of(text)
    assert sum(map(len, batches)) == 11 and all(len(json.dumps(batch, ensure_ascii=False)) <= 102 for batch in batches)
    assert max(map(len, batches)) > 1
    monkeypatch.setattr(json_stream, "plain_objects", lambda text: None)
    monkeypatch.setattr(json_stream, "BATCH", 4)
    assert list(map(len, batches_of(text))) == [4, 4, 3]


AT_ONCE = [
    '{"id": 7, "list": [1, 2.5, "}"], "none": null}',
    '{"id": 7, "url": "http://a.b:80/c", "date": "17:02:52"}',
    '{"id" : 7 , "rle"\t:\n{"size": [3, 4], "counts": "12:4"}}',
    '{"nan": NaN, "far": -Infinity, "empty": {}}',
]
CALLED_FOR = ['{"list": ["}, {"]}', '{"a": "say \\": so"}', '{"a": [{"b": 1}, {"b": 2}]}', '{"a": {"b": {"c": 1}}}']


@pytest.mark.parametrize("form", [*AT_ONCE, *CALLED_FOR])
def test_objects_are_parsed_at_once_or_with_a_call_for_each_but_are_the_same(monkeypatch, form):
    calls = []
    monkeypatch.setattr(json_stream, "object_of", lambda pairs: calls.append(pairs) or object_of(pairs))
    text = f'{{"images": [{", ".join([form] * 40)}], "more": 1}}'
    found = [image for batch in batches_of(text) for image in batch]
    assert repr(found) == repr(json.loads(text)["images"]) and (len(calls) < 4) == (form in AT_ONCE)


@pytest.mark.parametrize("place", [0, 17, 39])
@pytest.mark.parametrize("form", AT_ONCE)
@pytest.mark.parametrize(
    "twice", ['"k": 1, "k": 2', '"k" : 1, "l": "a:b", "k"\n: 2', '"o": {"k": 1, "k": 1}', '"k": 1, "k": {}']
)
def test_a_key_that_is_duplicated_is_named_among_any_others(place, form, twice):
    forms = [form] * 40
    forms[place] = f"{{{twice}}}"
    with pytest.raises(RepeatedKey, match="^key 'k' is duplicated in the object of "):
        batches_of(f'{{"images": [{", ".join(forms)}]}}')


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
