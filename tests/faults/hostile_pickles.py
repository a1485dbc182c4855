"""Pickles written opcode by opcode, and the files that hold them."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import torch

TINY = struct.Struct("<I")


def text(value: str) -> bytes:
    return b"X" + TINY.pack(len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    content = pickle.dumps(value, 2)  # \x80 \x02, the number, a dot
    return content[2:-1]


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """A call of a global with arguments that are opcodes already."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def mapping(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def shell(mark: Path) -> str:
    """A command that leaves a mark."""
    return f"touch {mark}"


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def tensor(key="0", kind="FloatStorage", count=4, size=(4,), stride=(1,), offset=0) -> bytes:
    """A tensor of torch's pickles."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    shape, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + shape
        + steps
        + b"\x89"
        + b"ccollections\nOrderedDict\n)R"
        + b"tR"
    )


def torch_zip(path: Path, body: bytes, storages=None, compress=zipfile.ZIP_STORED, **more: bytes) -> Path:
    """A zip as torch.save's with a pickle and storages of one's own."""
    files = {"data.pkl": whole(body), "byteorder": b"little", "version": b"3\n", **more}
    files |= {f"data/{key}": content for key, content in (storages or {"0": bytes(16)}).items()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name}", content)
    return path


def torch_legacy(path: Path, body: bytes, storages=None) -> Path:
    """A file in torch's format before 1.6."""
    storages = {"0": (4, bytes(16))} if storages is None else storages
    start = io.BytesIO()
    for value in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    ):
        pickle.dump(value, start, 2)
    start.write(whole(body))
    pickle.dump(list(storages), start, 2)
    for count, content in storages.values():
        start.write(struct.pack("<q", count) + content)
    path.write_bytes(start.getvalue())
    return path


def saved(path: Path, content, **options) -> Path:
    torch.save(content, path, **options)
    return path


def stretched(path: Path, size: int) -> Path:
    """Make the file `size` bytes long without writing them."""
    os.truncate(path, size)
    return path
