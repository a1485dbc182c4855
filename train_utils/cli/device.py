"""--device -> the device that a command computes on."""

import torch

from backbone.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """Returns the device of `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:i`; else InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"--device {name}: give auto, cpu, cuda or cuda:0, cuda:1, ...")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"--device {name}: torch sees no CUDA GPU here; give --device cpu")
        if index and int(index) >= count:
            raise InputError(f"--device {name}: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}")
    return torch.device(name)
