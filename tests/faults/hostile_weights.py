"""Checkpoints and weights files made to harm: name -> make(folder, mark), which writes one and returns its path."""

import builtins
import os
import pickle
import struct
import subprocess
import zipfile

import torch

from tests.faults.hostile_pickles import (
    Runs,
    called,
    mapping,
    number,
    saved,
    shell,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    whole,
)
from tests.tiny_model import write_checkpoint
from train_utils.checkpoints.checkpoint import save_checkpoint

BIG = 100 * 2**30  # bytes


def _bare(function, *words):
    def make(folder, mark):
        arguments = [word.replace("MARK", str(mark)) for word in words]
        path = folder / "bare.pth"
        path.write_bytes(pickle.dumps({"model": Runs(function, *arguments)}, 2))
        return path

    return make


def _zip(body, **options):
    """body: opcodes, or mark -> opcodes."""
    return lambda folder, mark: torch_zip(folder / "zip.pth", body(mark) if callable(body) else body, **options)


def _legacy(body, **options):
    return lambda folder, mark: torch_legacy(folder / "legacy.pth", body(mark) if callable(body) else body, **options)


def _saved(content, **options):
    return lambda folder, mark: saved(folder / "saved.pth", content, **options)


def _zip_bomb(folder, mark):
    """A quarter of a gigabyte of nothing as a packed data.pkl of a megabyte."""
    path = folder / "bomb.pth"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,  # the fastest
        archive.open("archive/data.pkl", "w") as file,
    ):
        for _ in range(16):
            file.write(bytes(2**24))
    return path


def _overlapping(folder, mark):
    """A thousand entries of the zip's list that all are the same megabyte of the file."""
    path = torch_zip(folder / "overlap.pth", mapping(w=tensor()), {"0": bytes(2**20)})
    content = path.read_bytes()
    at = content.rfind(b"PK\x05\x06")
    (start,) = struct.unpack("<I", content[at + 16 : at + 20])
    entry = content[content.rfind(b"PK\x01\x02", 0, at) : at]
    entries = content[start:at] + b"".join(entry[:-1] + b"%c" % (48 + i % 70) for i in range(1000))
    end = content[at : at + 8] + struct.pack("<HHII", 1004, 1004, len(entries), start) + b"\0\0"
    path.write_bytes(content[:start] + entries + end)
    return path


def _claims_more(folder, mark):
    """The zip's list says that the tensor's data has 100 GB."""
    path = torch_zip(folder / "claim.pth", mapping(w=tensor(count=25 * 2**30, size=(25 * 2**30,))))
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02", content.rfind(b"data/0") - 60)
    content[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)
    return path


def _changed(change):
    """A checkpoint of this program that `change` has worked on."""

    def make(folder, mark):
        path = write_checkpoint(folder / "changed.pth", width=8)
        content = torch.load(path, weights_only=True)
        change(content)
        save_checkpoint(path, content)
        return path

    return make


def _settings(**changed):
    return _changed(lambda content: content["config"].update(changed))


def _replaced(**changed):
    return _changed(lambda content: content.update(changed))


LAUGHS = (
    b"](]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40)) + b"e"
)
TUPLES = b"(K\x01tq\x00" + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
)
SYSTEM = lambda mark: mapping(w=tensor(), x=called("os", "system", text(shell(mark))))  # noqa: E731
POSIX = lambda mark: mapping(w=tensor(), x=called("posix", "system", text(shell(mark))))  # noqa: E731
EXEC = lambda mark: mapping(  # noqa: E731
    w=tensor(), x=called("builtins", "exec", text(f"import os; os.system({shell(mark)!r})"))
)

OF_CHECKPOINTS = {
    "settings of a model of 10^12 numbers": _settings(fpn_channels=10**6, box_head_channels=10**6),
    "settings of 10^9 layers": _settings(mask_head_layers=10**9),
    "settings of RoIs 10^6 a side": _settings(box_roi_size=10**6),
    "settings of 10^12 classes": _settings(num_classes=10**12),
    "settings that are text": _settings(num_classes="many", min_size="\x1b[2J"),
    "settings that are a list": _replaced(config=[1, 2]),
    "a label map that is text": _replaced(label_map="\x1b[2J"),
    "a format version that is a list": _replaced(format_version=[1] * 1000),
}
WEIGHTS_CASES = {
    **OF_CHECKPOINTS,
    "a bare pickle of os.system": _bare(os.system, "touch MARK"),
    "a bare pickle of exec": _bare(builtins.exec, "open('MARK', 'w')"),
    "a bare pickle of subprocess": _bare(subprocess.check_output, "true"),
    "a zip whose data.pkl names os.system": _zip(SYSTEM),
    "a zip whose data.pkl names posix.system": _zip(POSIX),
    "a zip whose data.pkl names exec": _zip(EXEC),
    "a zip whose data.pkl names a module of its own": _zip(mapping(x=called("evil", "run"))),
    "a legacy file of os.system": _legacy(SYSTEM),
    "a legacy file of exec": _legacy(EXEC),
    "a legacy file whose first pickle is os.system": lambda folder, mark: _written(
        folder / "first.pth", whole(called("os", "system", text(shell(mark))))
    ),
    "a saved object with a method of its own": _saved({"a": Runs(print, "x")}),
    "a zip that calls torch.hub": _zip(mapping(x=called("torch.hub", "load", text("evil/repository"), text("m")))),
    "a bytearray of 100 GB": _zip(mapping(x=called("builtins", "bytearray", number(BIG)))),
    "a tensor class called for 100 GB": _zip(mapping(x=called("torch", "Tensor", number(BIG // 4)))),
    "a tensor of 100 GB on 16 bytes": _zip(mapping(w=tensor(size=(BIG // 4,)))),
    "a tensor that repeats 4 bytes to 100 GB": _zip(mapping(w=tensor(size=(BIG // 4,), stride=(0,)))),
    "a tensor that begins beyond its data": _zip(mapping(w=tensor(offset=2**40))),
    "a storage of 100 GB on 16 bytes": _zip(mapping(w=tensor(count=BIG // 4, size=(BIG // 4,)))),
    "a storage without data": _zip(mapping(w=tensor(key="7"))),
    "a storage of another file": _zip(mapping(w=tensor(key="../../../../etc/passwd"))),
    "a legacy storage of 100 GB": _legacy(mapping(w=tensor(count=BIG // 4, size=(BIG // 4,)))),
    "a legacy tensor of 100 GB on 16 bytes": _legacy(mapping(w=tensor(size=(BIG // 4,)))),
    "a legacy storage whose length is another": _legacy(mapping(w=tensor()), storages={"0": (2**40, bytes(16))}),
    "a zip's list that claims 100 GB": _claims_more,
    "a zip bomb": _zip_bomb,
    "a packed zip": _zip(mapping(w=tensor()), compress=zipfile.ZIP_DEFLATED),
    "a zip of overlapping entries": _overlapping,
    "lists that unfold to 2^40": _zip(mapping(format_version=LAUGHS, w=tensor())),
    "a tuple that takes 2^60 steps to hash": _zip(b"}(" + TUPLES + b"K\x01u"),
    "a list within itself": _zip(mapping(x=b"]q\x00h\x00a")),
    "lists 100,000 deep": _zip(mapping(x=b"]" * 100_000 + b"a" * 99_999)),
    "a million lists": _zip(b"](" + b"]" * 1_100_000 + b"e"),
    "a memo of 2^32": _zip(b"}r\xff\xff\xff\xff"),
    "a legacy file of a million lists": _legacy(b"](" + b"]" * 1_100_000 + b"e"),
    "weights that are a list": _replaced(model=[1, 2]),
    "a tar": lambda folder, mark: _written(
        folder / "x.tar", b"storages".ljust(257, b"\0") + b"ustar\x0000" + bytes(800)
    ),
    "nothing but zeros": lambda folder, mark: _written(folder / "zeros.pth", bytes(100_000)),
    "an empty file": lambda folder, mark: _written(folder / "empty.pth", b""),
}


def _written(path, content: bytes):
    path.write_bytes(content)
    return path
