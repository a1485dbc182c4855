"""Files of torch.save -> tensors and plain values: checked first, then loaded.

torch.load(weights_only=True) runs no foreign code, but it believes what a file says about its sizes: a few
bytes can make it take all memory, or read beyond a tensor's data. So the file's structure and its pickle are
checked first, before any tensor is made. Both of torch's formats are read, the zip and the one before 1.6.
"""

import argparse
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from backbone.errors import InputError
from network_files.weight_files.file_stamp import NO_STAMP, damage_of
from network_files.weight_files.plain_pickle import Built, Data, Name, PickleRefused, interpret
from network_files.weight_files.safetensors import read_safetensors

MAX_PICKLE = 2**26  # bytes of structure: names, shapes, settings; the tensors' data is apart
MAX_DIRECTORY = 2**24  # bytes of a zip's list of entries
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ITEM_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int"), 4),
    "ComplexDouble": 16,
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool", "Untyped"), 1),
}
COUNTER = Name("collections", "Counter")  # MultiStepLR's milestones
DICTS = {Name("collections", "OrderedDict"), COUNTER}
TENSORS = {Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor")}
PARAMETER = Name("torch._utils", "_rebuild_parameter")
REBUILD = TENSORS | {PARAMETER}
NAMESPACE = Name("argparse", "Namespace")
UNREADABLE = (
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


def read_torch_file(path: str | Path) -> dict:
    """Reads the dict in a file of torch.save, or of safetensors: tensors on the CPU, and plain values.

    A file with a checksum is checked against it. An argparse.Namespace in it, in which torchvision's references save
    their flags, is loaded too. Raises InputError for a file that is damaged, is none of torch's, holds more than
    data, or says that it is larger than it is; nothing was run then.
    """
    try:
        with open(path, "rb") as file:
            if Path(path).suffix.lower() == ".safetensors":
                return read_safetensors(file)
            damage, stamped = damage_of(file)
            content = None if damage else _load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path}: not a checkpoint or weights file that can be read ({reason})") from error
    if not damage and not stamped and isinstance(content, dict) and "format_version" in content:
        damage = NO_STAMP  # else damage to the checksum would let other damage pass
    if damage:
        raise InputError(f"{path}: the file is damaged ({damage}); take another checkpoint")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


def _load(file: BinaryIO) -> Any:
    check(file)
    file.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def check(file: BinaryIO) -> None:
    """Raises PickleRefused, or an error of zipfile, for a file that torch.save does not write.

    That is one with more than tensors and plain values, or whose sizes are not true.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise PickleRefused("the file is empty")
    if file.read(4) == b"PK\x03\x04":
        _check_zip(file, size)
    else:
        _check_legacy(file, size)


def _check_zip(file: BinaryIO, size: int) -> None:
    if _directory_size(file, size) > MAX_DIRECTORY:
        raise PickleRefused("the zip's list of entries is too long")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename: entry for entry in entries}
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
            raise PickleRefused("its entries are packed; torch.save does not pack, so this is not its file")
        if len(names) < len(entries) or sum(entry.file_size for entry in entries) > size:
            raise PickleRefused("its entries overlap")
        pickles = [name for name in names if name.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise PickleRefused("a zip, but not one of torch.save: it has no data.pkl")
        if names[pickles[0]].file_size > MAX_PICKLE:
            raise PickleRefused(f"its data.pkl is larger than {MAX_PICKLE >> 20} MiB")
        content = archive.read(pickles[0])
    prefix = pickles[0].partition("/")[0]

    def length_of(storage: "Storage") -> int:
        entry = names.get(f"{prefix}/data/{storage.key}")
        return -1 if entry is None else entry.file_size

    _check_pickle(content, 0, length_of)


def _directory_size(file: BinaryIO, size: int) -> int:
    """Returns the bytes of the zip's list of entries, from the record at the file's end, which must be the only one."""
    start = max(0, size - 22 - 0xFFFF - 20)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(END)
    if at < 0 or at + 22 > len(tail):
        raise PickleRefused("a zip that was cut off")
    length, comment = struct.unpack("<I4xH", tail[at + 12 : at + 22])
    if at + 22 + comment != len(tail):
        raise PickleRefused("a zip that was cut off, or that something follows")
    if tail[at - 20 : at - 16] == LOCATOR64:
        file.seek(struct.unpack("<8xQ", tail[at - 20 : at - 4])[0])
        record = file.read(56)
        if record[:4] != END64:
            raise PickleRefused("a zip whose end is damaged")
        (length,) = struct.unpack("<Q", record[40:48])
    return length


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Checks the older format.

    It holds pickles of a magic number, a version, the machine, the content and the storages' keys; then each
    storage's count of elements, and its data.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        for what in ("magic number", "version", "machine"):
            value, at = interpret(data, _is_known, _call, at)
            if what == "magic number" and value != LEGACY_MAGIC:
                raise PickleRefused("not a file of torch.save")
        storages, at = _check_pickle(data, at, None)
        keys, at = interpret(data, _is_known, _call, at)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
            raise PickleRefused("its list of tensors' data is not that of its tensors")
        for key in keys:
            count = int.from_bytes(data[at : at + 8], "little")
            at += 8 + count * ITEM_BYTES[storages[key].kind]
            if at > size or count != storages[key].count:
                raise PickleRefused(f"its data {key} is not as long as it says")


class Storage(NamedTuple):
    """Data that a pickle refers to: `count` elements of a kind in ITEM_BYTES, under a key."""

    kind: str
    key: str
    count: int


class Tensor(Built):
    """Stands for a tensor or parameter."""


class Settings(Built):
    """Stands for a namespace, whose attributes nothing reads."""

    def update(self, state: Any) -> None:
        """Ignores the attributes."""


def _check_pickle(data: Data, at: int, length_of: Callable[[Storage], int] | None) -> tuple[dict[str, Storage], int]:
    """Interprets the pickle at `at`; returns the storages by key, and where the pickle ends.

    length_of: the bytes that the file has for a storage, -1: none; None: not known yet.
    """
    storages: dict[str, Storage] = {}

    def persistent(value: Any) -> Storage:
        tag, kind, key, _, count = value[:5]
        word = kind.name.removesuffix("Storage") if isinstance(kind, Name) and kind.module.startswith("torch") else None
        if tag != "storage" or word not in ITEM_BYTES or not isinstance(key, str) or not _is_count(count):
            raise PickleRefused("refers to something else than a tensor's data")
        storage = Storage(word, key, count)
        if storages.setdefault(key, storage).count * ITEM_BYTES[word] < count * ITEM_BYTES[word]:
            raise PickleRefused(f"its data {key} has two lengths")
        if length_of is not None and count * ITEM_BYTES[word] > length_of(storage):
            raise PickleRefused(f"says that its data {key} has {count} elements, the file has fewer")
        return storage

    _, end = interpret(data, _is_known, _call, at, persistent)
    return storages, end


def _is_known(name: Name) -> bool:
    if name.module in ("torch", "torch.storage"):
        return (
            name.name in ("Size", "device")
            or name.name.removesuffix("Storage") in ITEM_BYTES
            or isinstance(getattr(torch, name.name, None), torch.dtype)
        )
    return name in DICTS | REBUILD | {NAMESPACE}


def _call(name: Name, arguments: tuple) -> Any:
    if name in DICTS and not arguments:
        return {}
    if name == COUNTER and len(arguments) == 1 and isinstance(arguments[0], dict):
        return dict(arguments[0])
    if name in TENSORS and not any(arguments[5:6]):  # the sixth: hooks
        _check_tensor(*arguments[:4])
        return Tensor()
    if name == PARAMETER and isinstance(arguments[0], Tensor):
        return Tensor()
    if name == NAMESPACE and not arguments:
        return Settings()
    if name == Name("torch", "Size") and len(arguments) == 1 and all(map(_is_count, arguments[0])):
        return arguments[0]
    if name == Name("torch", "device") and all(type(value) in (str, int) for value in arguments):
        return str(arguments)
    raise PickleRefused(f"calls {name} with what no file of torch.save has")


def _check_tensor(storage: Any, offset: Any, size: Any, stride: Any) -> None:
    whole = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not whole or len(size) != len(stride) or not all(map(_is_count, (offset, *size, *stride))):
        raise PickleRefused("has a tensor without a true shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # a shape that repeats its data may be of any size
    if math.prod(size) and (last >= storage.count or math.prod(size) > storage.count):
        raise PickleRefused(f"has a tensor of shape {size} on data of {storage.count} elements")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48
