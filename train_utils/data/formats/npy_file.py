"""A .npy file -> an array or a Python object, as `np.save(path, {"boxes": ..., "masks": ...})` writes it.

Such a file holds a pickle, which numpy would run; here it is read as data (`plain_pickle` of the weight files),
and nothing is made that the file has no bytes for.
"""

import ast
import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from backbone.errors import InputError
from network_files.weight_files.plain_pickle import Built, Name, PickleRefused, check_tree, interpret

MAGIC = b"\x93NUMPY"
MAX_HEADER = 2**16  # bytes; numpy's own are 128 or so
MAX_PICKLE = 2**31  # bytes
HEADER_KEYS = {"descr", "fortran_order", "shape"}
PLAIN_DTYPE = re.compile(r"[<>|=]?(?:[biufc](?:1|2|4|8|16)|[SU][1-9]\d{0,5}|\?)")
OBJECT_DTYPE = re.compile(r"\|?O8?")
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # of numpy 1 and 2
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
RECONSTRUCT = {Name(module, "_reconstruct") for module in MULTIARRAY}
SCALAR = {Name(module, "scalar") for module in MULTIARRAY}
FROM_BUFFER = {Name(module, "_frombuffer") for module in NUMERIC}
NDARRAY, DTYPE, ENCODE = Name("numpy", "ndarray"), Name("numpy", "dtype"), Name("_codecs", "encode")
BYTES = {Name(module, kind) for module in ("builtins", "__builtin__") for kind in ("bytes", "bytearray")}


def read_npy(path: str | Path) -> Any:
    """Returns the array in a .npy file, or, of one that holds a single Python object, that object.

    An object is a dict, list, tuple, number, text, or array of numbers or text, nested as one likes. Raises
    InputError for a file that cannot be read, is damaged, names anything else, or says that it is larger than it
    is. Nothing in the file is run.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            descr, fortran, shape = _read_header(file)
            if OBJECT_DTYPE.fullmatch(descr):
                if size - file.tell() > MAX_PICKLE:
                    raise PickleRefused(f"holds Python objects of more than {MAX_PICKLE >> 30} GiB")
                return _read_objects(file.read(), shape)
            return _array(file.read(), _dtype(descr), shape, fortran)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        reason = str(error) if isinstance(error, PickleRefused) else f"damaged: {type(error).__name__}"
        raise InputError(
            f"{path}: not a .npy file that can be read ({reason}); save it again with np.save, "
            "as an array or as a dict of arrays"
        ) from error


def _read_header(file: BinaryIO) -> tuple[str, bool, tuple[int, ...]]:
    """Returns (dtype as text, whether columns come first, shape)."""
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise PickleRefused("it does not begin as one")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MAX_HEADER:
        raise PickleRefused(f"its header has {length} bytes")
    text = file.read(length)
    if len(text) < length:
        raise PickleRefused("it was cut off")
    try:
        header = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise PickleRefused("its header is damaged") from error
    if not isinstance(header, dict) or header.keys() != HEADER_KEYS:
        raise PickleRefused("its header is not a dict of descr, fortran_order and shape")
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str):
        raise PickleRefused("it is of a structured type, not of numbers")
    if type(fortran) is not bool or not _is_shape(shape):
        raise PickleRefused("its header holds no shape")
    return descr, fortran, shape


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def _dtype(descr: object) -> np.dtype:
    if not isinstance(descr, str) or not PLAIN_DTYPE.fullmatch(descr):
        shown = ascii(descr)[:40] if isinstance(descr, str) else type(descr).__name__
        raise PickleRefused(f"it holds values of type {shown}: numbers and text are read")
    return np.dtype(descr)


def _array(content: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    """Returns an array of its own memory, from exactly the bytes that it needs."""
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(content):
        raise PickleRefused(f"an array of shape {shape} takes {wanted} bytes, there are {len(content)}")
    values = np.frombuffer(bytearray(content), dtype) if wanted else np.zeros(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


class _Dtype(Built):
    def __init__(self, descr: object) -> None:
        self.descr = descr.lstrip("<>|=") if isinstance(descr, str) else descr

    def update(self, state: Any) -> None:
        # version, byte order, then what structured types and times have
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise PickleRefused("it is of a structured type, not of numbers")
        self.descr = state[1] + self.descr if isinstance(self.descr, str) else None

    def is_object(self) -> bool:
        return isinstance(self.descr, str) and OBJECT_DTYPE.fullmatch(self.descr) is not None

    def plain(self) -> np.dtype:
        return _dtype(self.descr)


class _Array(Built):
    """An array whose state is still to come, or has: then `value` is it."""

    value = None

    def update(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if self.value is not None or not _is_shape(shape) or not isinstance(dtype, _Dtype):
            raise PickleRefused("it holds an array without a true shape")
        if not dtype.is_object():
            self.value = _array(_bytes(content), dtype.plain(), shape, bool(fortran))
        elif not isinstance(content, list) or len(content) != math.prod(shape):
            raise PickleRefused(f"an array of shape {shape} holds another number of objects")
        else:
            self.value = _Objects(shape, content)


class _Objects:
    """An array of objects: allowed as the whole file, not within it."""

    def __init__(self, shape: tuple[int, ...], content: list) -> None:
        self.shape, self.content = shape, content


def _bytes(content: object) -> bytes | bytearray:
    if not isinstance(content, bytes | bytearray):
        raise PickleRefused("it holds an array without data")
    return content


def _read_objects(content: bytes, shape: tuple[int, ...]) -> Any:
    value, end = interpret(content, _is_known, _call)
    if end != len(content):
        raise PickleRefused("something follows after its end")
    objects = value.value if isinstance(value, _Array) else None
    if not isinstance(objects, _Objects) or objects.shape != shape:
        raise PickleRefused(f"its header says an array of shape {shape}, its content is something else")
    check_tree(objects.content)  # within an array, where `interpret` does not look
    values = [_finished(part) for part in objects.content]
    if shape == ():
        return values[0]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def _is_known(name: Name) -> bool:
    return name in RECONSTRUCT | SCALAR | FROM_BUFFER | BYTES | {NDARRAY, DTYPE, ENCODE}


def _call(name: Name, arguments: tuple) -> Any:
    if name in RECONSTRUCT and len(arguments) == 3 and arguments[0] == NDARRAY:
        return _Array()
    if name in FROM_BUFFER and len(arguments) == 4 and isinstance(arguments[1], _Dtype) and _is_shape(arguments[2]):
        array = _Array()
        array.value = _array(_bytes(arguments[0]), arguments[1].plain(), arguments[2], arguments[3] == "F")
        return array
    if name in SCALAR and len(arguments) == 2 and isinstance(arguments[0], _Dtype):
        return _array(_bytes(arguments[1]), arguments[0].plain(), (1,), False)[0]
    if name == DTYPE and arguments:
        return _Dtype(arguments[0])
    if name == ENCODE and len(arguments) == 2 and arguments[1] == "latin1" and isinstance(arguments[0], str):
        return arguments[0].encode("latin1")  # how protocol 2 writes bytes
    if name in BYTES and all(isinstance(value, bytes | bytearray) for value in arguments[:1]) and len(arguments) < 2:
        return bytes(*arguments)
    raise PickleRefused(f"it calls {name} with what no array has")


def _finished(value: Any) -> Any:
    """Returns `value` with arrays in the place of what stands for them; `interpret` has bounded its depth."""
    if isinstance(value, _Array):
        if not isinstance(value.value, np.ndarray):
            raise PickleRefused("it holds an array of objects within an object; save lists or arrays of numbers")
        return value.value
    if isinstance(value, Name | Built):
        raise PickleRefused("it holds a type, not data")
    if isinstance(value, dict):
        return {key: _finished(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_finished(part) for part in value])
    return value
