"""A file of safetensors -> a state dict, read as what it is: a table of names in json, and the bytes of the tensors.

Format: 8 bytes of length (little endian), so many bytes of json {name: {dtype, shape, data_offsets}}, then the data.
Source: https://github.com/huggingface/safetensors
"""

import json
import math
import os
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MOST_JSON = 100_000_000  # bytes, as safetensors itself allows


def read_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    """Reads the tensors of an open file, on the CPU. Raises ValueError for one that is cut off or damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MOST_JSON):
        raise ValueError("not a file of safetensors, or one that was cut off")
    table = json.loads(file.read(length))
    if not isinstance(table, dict):
        raise ValueError("its table of tensors is no json object")
    data = bytearray(size - 8 - length)
    file.readinto(data)
    return {name: _tensor(name, entry, data) for name, entry in table.items() if name != "__metadata__"}


def _tensor(name: str, entry: Any, data: bytearray) -> Tensor:
    """Returns the tensor of an entry of the table; its memory is the data's."""
    try:
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        whole = all(type(side) is int and side >= 0 for side in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name[:80]!r} is not described as safetensors does") from error
    if not whole or end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name[:80]!r} is cut off, or its size is not true")
    if start == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
