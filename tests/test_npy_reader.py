"""read_npy gives what np.save was given, and refuses what is no data."""

import io
import pickle
import pickletools

import numpy as np
import pytest

from backbone.errors import InputError
from tests.faults.hostile_pickles import Runs
from train_utils.data.formats.npy_file import read_npy

SAMPLE = {
    "boxes": np.arange(8, dtype=np.float32).reshape(2, 4),
    "labels": np.array([1, 2]),
    "name": "a.png",
    "n": None,
    "masks": np.asfortranarray(np.arange(24).reshape(2, 3, 4) % 2 == 0),
    "scalar": np.float64(0.5),
    "flag": True,
    "names": np.array(["cat", "žába"]),
    "list": [1, 2.5, (3, "x"), {}, b"bytes"],
    "none": np.zeros((0, 4), ">i2"),
}


def same(a, b):
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    if isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    return type(a) is type(b) and a == b


def object_file(path, value, shape=(), protocol=4, numpy_1=False):
    """A .npy file of an object array, in a protocol of choice."""
    array = np.empty(shape, dtype=object)
    array[()] = value
    content = pickle.dumps(array, protocol)
    if numpy_1:
        content = old_names(content)
    return raw_file(path, content, shape=shape)


def old_names(content: bytes) -> bytes:
    """A pickle with the module names that numpy 1 wrote (numpy._core -> numpy.core), in protocol 2's opcodes."""
    return content.replace(b"cnumpy._core.", b"cnumpy.core.")


def raw_file(path, content=b"", descr="|O", shape=(), fortran=False, header=None, version=1):
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}) if header is None else header
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + content)
    return path


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(7, ">i4"),
        np.zeros((0, 5), np.uint8),
        np.array(["a", "bcd"]),
        np.array([True, False]),
        np.array([b"x"]),
        np.array([1 + 2j]),
    ],
)
def test_arrays_come_back_as_np_save_took_them(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert same(read_npy(tmp_path / "a.npy"), array)
    assert same(read_npy(tmp_path / "a.npy"), np.load(tmp_path / "a.npy", allow_pickle=False))


def test_a_dict_of_arrays_comes_back(tmp_path):
    np.save(tmp_path / "a.npy", SAMPLE)
    found = read_npy(tmp_path / "a.npy")
    assert same(found, SAMPLE)
    found["boxes"][0, 0] = 5  # memory of its own


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("numpy_1", [False, True])
def test_every_protocol_and_both_numpys(tmp_path, protocol, numpy_1):
    if numpy_1 and protocol > 3:
        pytest.skip("names of numpy 1 are put into protocols 2 and 3")
    path = object_file(tmp_path / "a.npy", SAMPLE, protocol=protocol, numpy_1=numpy_1)
    assert same(read_npy(path), SAMPLE)
    assert not numpy_1 or b"numpy.core" in path.read_bytes()


def test_a_list_of_dicts_comes_back(tmp_path):
    array = np.empty(2, dtype=object)
    array[:] = [SAMPLE, {"boxes": []}]
    np.save(tmp_path / "a.npy", array)
    found = read_npy(tmp_path / "a.npy")
    assert found.shape == (2,) and same(found[0], SAMPLE) and found[1] == {"boxes": []}


HUGE = "(" + "(" * 20000


def nested(depth):
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def laughs(levels=30):
    """A list of two references to a list of two references ...: 2^levels values."""
    steps = b"".join(b"](" + (f"h{chr(i)}" * 2).encode() + b"eq" + bytes([i + 1]) for i in range(levels))
    return b"\x80\x02](]q\x00" + steps + b"e."


def in_array(content: bytes) -> bytes:
    """A pickle's value as the one object of an object array."""
    body = content[2:-1]
    return (
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01)"
        b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x3ftb\x89](" + body + b"etb."
    )


def test_the_hand_made_pickle_is_one(tmp_path):
    path = raw_file(tmp_path / "a.npy", in_array(b"\x80\x02K\x07."))
    pickletools.dis(in_array(b"\x80\x02K\x07."), out=io.StringIO())
    assert read_npy(path) == 7


def cut_head(path):
    """The pickle of an object array, behind the header of one object."""
    content = object_file(path, 1, shape=(2,)).read_bytes()
    return raw_file(path, content[content.index(b"\x80\x04") :])


@pytest.mark.parametrize(
    "write, reason",
    [
        (lambda p: object_file(p, {"a": Runs(print, "x")}), "names builtins.print.*nothing was run"),
        (lambda p: object_file(p, {"a": Runs(exec, "x")}, protocol=2), "names __builtin__.exec"),
        (lambda p: object_file(p, np.array([1, None], dtype=object)), "array of objects within"),
        (lambda p: object_file(p, {"a": np.float64}), "names numpy.float64"),
        (lambda p: object_file(p, {"a": {1, 2}}), "opcode|names"),
        (lambda p: object_file(p, {(1, 2): 3}), "tuple as the key"),
        (lambda p: object_file(p, {"a": np.array(["2020-01-01"], "datetime64[D]")}), "type|structured"),
        (lambda p: object_file(p, {"a": np.zeros(2, [("x", "f4")])}), "structured|type"),
        (lambda p: np.save(p, np.zeros(2, [("x", "f4")])), "structured"),
        (lambda p: raw_file(p, in_array(nested(100_000))), "nested more than"),
        (lambda p: raw_file(p, in_array(laughs())), "unfolds to more than"),
        (lambda p: raw_file(p, in_array(b"\x80\x02]q\x00h\x00a.")), "nested more than"),
        (lambda p: raw_file(p, b"\x80\x02K\x01r\xff\xff\xff\xff."), "something else"),
        (lambda p: raw_file(p, b"\x80\x04\x96" + (2**40).to_bytes(8, "little")), "ends early"),
        (lambda p: raw_file(p, b"N" * 1_000_001), "more than 250000 steps"),
        (lambda p: raw_file(p, b""), "not a sound pickle|opcode"),
        (lambda p: raw_file(p, b"N."), "something else"),
        (cut_head, "something else"),
        (lambda p: raw_file(p, bytes(16), "<f4", (2**40, 2**40)), "takes|shape"),
        (lambda p: raw_file(p, bytes(16), "<f4", (2**20, 2**20)), "there are 16"),
        (lambda p: raw_file(p, bytes(20), "<f4", (4,)), "there are 20"),
        (lambda p: raw_file(p, bytes(16), "<f4", (-4,)), "no shape"),
        (lambda p: raw_file(p, bytes(16), "<f4", (4.0,)), "no shape"),
        (lambda p: raw_file(p, b"", "<U0", (2**40,)), "type"),
        (lambda p: raw_file(p, bytes(16), "<M8[s]", (2,)), "type"),
        (lambda p: raw_file(p, bytes(16), "V16", (1,)), "type"),
        (lambda p: raw_file(p, header="[1, 2]"), "not a dict"),
        (lambda p: raw_file(p, header="{'descr': '<f4'}"), "not a dict"),
        (lambda p: raw_file(p, header="__import__('os').getpid()"), "header is damaged"),
        (lambda p: raw_file(p, header=HUGE), "header is damaged"),
        (lambda p: raw_file(p, header="{1: 2}" + " " * 70_000, version=2), "header has 70006 bytes"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"), "header has 4294967295 bytes"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x09\x00"), "begin as one"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "begin as one"),
        (lambda p: p.write_bytes(b""), "begin as one"),
        (lambda p: p.mkdir(), "cannot be read"),
    ],
)
def test_what_is_no_data_is_one_line(tmp_path, write, reason):
    path = tmp_path / "a.npy"
    write(path)
    with pytest.raises(InputError, match=reason) as caught:
        read_npy(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 400


def test_cut_off_anywhere_is_an_input_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, SAMPLE)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_npy(path)
