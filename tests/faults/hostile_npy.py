"""Files of numpy made to harm: name -> make(folder, mark), which writes one and returns its path."""

import builtins
import os
import pickle

import numpy as np

from tests.faults.hostile_pickles import Runs, called, number, shell, text, whole

TERABYTE = 2**40


def npy(folder, content=b"", descr="|O", shape=(), header=None, length=None):
    """A .npy file of any header and content."""
    line = repr({"descr": descr, "fortran_order": False, "shape": shape}) if header is None else header
    path = folder / "a.npy"
    size = (len(line) if length is None else length).to_bytes(4, "little")
    path.write_bytes(b"\x93NUMPY\x02\x00" + size + line.encode() + content)
    return path


def _object(*parts, protocol=4):
    def make(folder, mark):
        function, *arguments = parts
        array = np.empty((), dtype=object)
        array[()] = {"boxes": Runs(function, *(a.replace("MARK", str(mark)) for a in arguments))}
        return npy(folder, pickle.dumps(array, protocol))

    return make


def _of(content, **options):
    return lambda folder, mark: npy(folder, content, **options)


NPY_CASES = {
    **{
        f"a pickle of os.system in protocol {protocol}": _object(os.system, "touch MARK", protocol=protocol)
        for protocol in (2, 3, 4, 5)
    },
    "a pickle of exec": _object(builtins.exec, "open('MARK', 'w')"),
    "a pickle of eval": _object(builtins.eval, "1"),
    "a pickle of open": _object(builtins.open, "MARK", "w"),
    "a pickle of numpy's file reader": _object(np.fromfile, "/etc/passwd", "S1"),
    "a pickle that imports a module": lambda folder, mark: npy(folder, whole(called("this", "s"))),
    "a pickle that calls os.system alone": lambda folder, mark: npy(
        folder, whole(called("os", "system", text(shell(mark))))
    ),
    "a bytearray of 100 GB": _of(whole(called("builtins", "bytearray", number(100 * 2**30)))),
    "bytes of a claimed terabyte": _of(b"\x80\x04\x8e" + TERABYTE.to_bytes(8, "little") + b"x."),
    "a bytearray of a claimed terabyte": _of(b"\x80\x05\x96" + TERABYTE.to_bytes(8, "little") + b"x."),
    "a memo of 2^32": _of(b"\x80\x02Nr\xff\xff\xff\xff."),
    "a frame of a terabyte": _of(b"\x80\x04\x95" + TERABYTE.to_bytes(8, "little") + b"N."),
    "a million lists": _of(b"\x80\x02](" + b"]" * 1_100_000 + b"e."),
    "lists 100,000 deep": _of(whole(b"]" * 100_000 + b"a" * 99_999)),
    "a header of 4 GB": _of(b"", header="{}", length=2**32 - 1),
    "a header of 60,000 brackets": _of(b"", header="(" * 60_000),
    "a header that is code": _of(b"", header="__import__('os').system('true')"),
    "a header that is a list": _of(b"", header="['descr', 'fortran_order', 'shape']"),
    "a header with 10^6 digits": _of(b"", header="{'shape': (" + "9" * 60_000 + ",)}"),
    "a shape of terabytes": _of(bytes(64), descr="<f8", shape=(TERABYTE,)),
    "a shape of terabytes in two sides": _of(bytes(64), descr="<f8", shape=(2**24, 2**24)),
    "a terabyte of texts of no length": _of(b"", descr="<U0", shape=(TERABYTE,)),
    "texts of gigabytes each": _of(bytes(64), descr="<U999999999", shape=(1,)),
    "a million objects that are not there": lambda folder, mark: npy(
        folder, pickle.dumps(np.array([None], dtype=object)), shape=(10**6,)
    ),
    "a negative shape": _of(bytes(64), descr="<f8", shape=(-8,)),
    "a structured type": _of(bytes(64), descr=[("x", "<f8", (TERABYTE,))], shape=(8,)),
}
