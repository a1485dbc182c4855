"""A device that is not there: tensors of device "meta" with values, computed on the CPU; what they cost is counted.

    with Pretended() as device:
        model.to("meta")   and then whatever a GPU would be given

An operator that is given a tensor of the host beside one of the device raises, as CUDA would, or would copy it each
time. The host waits where it asks for a value, for a length that an operator must find out, or for a copy, in either
direction, that is not non-blocking.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from network_files.operators import padded
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.padded import HostCopy

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount,
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor of the device; held: its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls: type, held: Tensor) -> "OnDevice":
        """Wraps a tensor of the CPU."""
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout, dtype=held.dtype, device=DEVICE)
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Runs an operator outside of `Pretended`."""
        return run(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """The device, for a block of code, which it counts: backward passes too.

    operators: dispatched ones, the host's own too; waits: of the host; places: what was counted where, "operator
    file:line function" or "wait ...", if they are asked for.
    """

    def __init__(self, with_places: bool = False) -> None:
        super().__init__()
        self.operators, self.waits, self.with_places = 0, 0, with_places
        self.places: Counter[str] = Counter()
        self._patches = ExitStack()

    def __enter__(self) -> "Pretended":
        tolist, read, begin = Tensor.tolist, HostCopy.read, HostCopy.__init__
        device = self

        def waiting_tolist(tensor: Tensor) -> Any:
            if isinstance(tensor, OnDevice):
                device.wait("tolist")
            return tolist(tensor.held if isinstance(tensor, OnDevice) else tensor)

        def begun(copy: HostCopy, tensor: Tensor) -> None:
            begin(copy, tensor)
            copy.waits = device.waits if isinstance(tensor, OnDevice) else None

        def waiting_read(copy: HostCopy) -> Tensor:
            if getattr(copy, "waits", None) == device.waits:  # else a later wait has been for this, too
                device.wait("read")
            return read(copy)

        def from_values(make: Callable) -> Callable:  # torch's own makes a tensor of "meta", which has no values
            def made(values: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
                if device is None or torch.device(device).type != DEVICE.type or isinstance(values, OnDevice):
                    return make(values, *args, **kwargs, **({} if device is None else {"device": device}))
                return make(values, *args, **kwargs).to(DEVICE)

            return made

        autocast = torch.autocast

        def on_cpu(kind: str, *args: Any, **kwargs: Any) -> torch.autocast:
            return autocast("cpu" if kind == DEVICE.type else kind, *args, **kwargs)

        for owner, name, value in (
            (Tensor, "tolist", waiting_tolist),
            (HostCopy, "__init__", begun),
            (HostCopy, "read", waiting_read),
            (torch, "autocast", on_cpu),
            (torch, "tensor", from_values(torch.tensor)),
            (torch, "as_tensor", from_values(torch.as_tensor)),
            (padded, "VALUED", (*padded.VALUED, OnDevice)),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, value))
        fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
        self._patches.enter_context(mock.patch(fused, lambda: ["meta", "cpu"]))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Counts an operator, and runs it."""
        packet, kwargs = func.overloadpacket, kwargs or {}
        self.operators += 1
        self._note("operator")
        unknown = packet in WAITING or has_unknown_length(packet, args, kwargs)
        unknown = unknown and any(isinstance(value, OnDevice) for value in tensors((args, kwargs)))
        if unknown or is_blocking_copy(packet, args, kwargs):
            self.wait(packet.__name__)
        return run(func, args, kwargs)

    def wait(self, what: str) -> None:
        """Counts a wait."""
        self.waits += 1
        self._note(f"wait {what}")

    def _note(self, what: str) -> None:
        if self.with_places:
            frame = sys._getframe(1)
            while frame and not _is_ours(frame.f_code.co_filename):
                frame = frame.f_back
            if frame:
                path = Path(frame.f_code.co_filename).relative_to(ROOT)
                self.places[f"{what} {path}:{frame.f_lineno} {frame.f_code.co_name}"] += 1


def _is_ours(path: str) -> bool:
    return path != __file__ and path.startswith(str(ROOT))


def has_unknown_length(packet: Any, args: tuple, kwargs: dict) -> bool:
    """Says whether the result's length is known after the operator alone."""
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return packet is aten.repeat_interleave and kwargs.get("output_size") is None


def is_blocking_copy(packet: Any, args: tuple, kwargs: dict) -> bool:
    """Says whether a copy between host and device waits."""
    if packet is aten.copy_:
        return isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice) and not (*args[2:], False)[0]
    device = kwargs.get("device")
    if packet is not aten._to_copy or device is None or kwargs.get("non_blocking"):
        return False
    return isinstance(args[0], OnDevice) != (torch.device(device).type == DEVICE.type)


def run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Runs an operator on the values; its result is the device's where an argument is, or where it is asked for.

    Raises RuntimeError where a tensor of the host, unless it is a single number, meets one of the device.
    """
    values = list(tensors((args, kwargs)))
    ours = any(isinstance(value, OnDevice) for value in values)
    if ours and func.overloadpacket is not aten.copy_:
        strangers = [value for value in values if not isinstance(value, OnDevice) and value.dim()]
        if strangers:
            raise RuntimeError(f"{func}: a tensor {list(strangers[0].shape)} of the host beside one of the device")
    device = kwargs.get("device")
    inner_args, inner_kwargs = mapped(OnDevice, lambda tensor: tensor.held, (args, kwargs))
    if device is not None:
        ours = torch.device(device).type == DEVICE.type
        inner_kwargs |= {"device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    out = func(*inner_args, **inner_kwargs)
    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return args[0]  # in place
    return mapped(Tensor, OnDevice, out) if ours else out


def tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


def mapped(kind: type | tuple[type, ...], function: Callable[[Any], Any], value: Any) -> Any:
    """Returns lists, tuples and dicts with each tensor of a kind replaced."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(kind, function, part) for key, part in value.items()}
    return type(value)(mapped(kind, function, part) for part in value) if type(value) in (list, tuple) else value


def to_device(value: Any) -> Any:
    """Returns a tensor, mask, list or dict with all its tensors on the device; a module's are moved in place."""
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    moved = torch.nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = moved
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = OnDevice(buffer)
        return value
    return mapped((Tensor, CroppedMasks), lambda part: part.to(DEVICE), value)
