"""What is different in number for each image -> padded tensors of the batch; and how a device wants them worked on.

A GPU is fed by few operators, and starves where the host waits for a result before it gives the next one: all images
of a batch are done at once, padded to the most that one has. A CPU waits for nothing, but pays for padding: it takes
image by image, through the same code. N images, P the most that one has.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from backbone.tracing import is_traced

CHEAP = ("cpu",)  # types of device on which the host may look at a result at no cost


def waits_are_cheap(device: torch.device) -> bool:
    """Says whether the host may look at a result of this device at no cost."""
    return device.type in CHEAP


def portions(count: int, device: torch.device) -> list[slice]:
    """Returns which of `count` images are done at once: each alone where waits are cheap, else all."""
    return [slice(i, i + 1) for i in range(count)] if waits_are_cheap(device) else [slice(0, count)]


def from_host(values: Sequence | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers or a tensor, of the host or there already, on a device: the host does not wait for the copy."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    pinned = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Returns the type that `torch.promote_types` gives with float32, which would count as an operator."""
    return dtype if dtype == torch.float64 else torch.float32


def constant(values: tuple, beside: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers that never change as a tensor on another one's device, kept there; nobody may write into it."""
    if is_traced(beside):
        return from_host(values, beside.device, dtype)
    return _kept(values, beside.device, dtype)


@functools.lru_cache(maxsize=1024)
def _kept(values: tuple, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    with torch.inference_mode(False):  # else no backward pass could keep it
        return from_host(values, device, dtype)


class HostCopy:
    """A small tensor on its way to the host: sent before other work is queued, read after it."""

    def __init__(self, tensor: Tensor) -> None:
        # an MPS device's copies are complete only when waited for, and nothing here would wait
        self.sent, self.value = tensor, tensor.to("cpu", non_blocking=not tensor.is_mps)
        # on the tensor's own GPU, which need not be the current one, whose stream knows nothing of the copy
        self.event = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def read(self) -> Tensor:
        """Returns the tensor, on the CPU, as soon as it is there."""
        if self.event:
            self.event.synchronize()
        return self.value


def cat_parts(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Returns tensors side by side; one alone as it is, not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def image_of_each(counts: Sequence[int]) -> Tensor:
    """Returns the image of each of counts[i] things of image i, int64 [sum], on the host."""
    return torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64), output_size=sum(counts))


class Padded:
    """values [N, P, ...], of which image i has the first counts[i]; what the others hold means nothing."""

    def __init__(self, values: Tensor, counts: Sequence[int]) -> None:
        self.values, self.counts = values, list(counts)

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "Padded":
        """Returns the parts, [P_i, ...] of image i, padded with zeros."""
        if len(parts) == 1:
            return cls(parts[0][None], [len(parts[0])])
        counts = [len(part) for part in parts]
        return cls.from_flat(torch.cat(list(parts)), counts)

    @classmethod
    def from_flat(cls, flat: Tensor, counts: Sequence[int]) -> "Padded":
        """Returns counts[i] rows of flat [sum, ...] for image i, padded with zeros."""
        most = max(counts, default=0)
        if all(count == most for count in counts):
            return cls(flat.unflatten(0, (len(counts), most)), counts)
        starts = torch.tensor(counts).cumsum(0)[:, None] - torch.tensor(counts)[:, None]
        place = torch.arange(most)
        inside = place < torch.tensor(counts)[:, None]
        index = from_host(torch.where(inside, starts + place + 1, 0), flat.device)
        return cls(torch.cat((torch.zeros_like(flat[:1]), flat))[index], counts)

    def to(self, device: torch.device) -> "Padded":
        """Returns the same on a device."""
        return self if self.values.device == device else Padded(from_host(self.values, device), self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, which: slice) -> "Padded":
        """Returns some images, padded no more than they need."""
        if which == slice(0, len(self)):
            return self
        counts = self.counts[which]
        return Padded(self.values[which, : max(counts, default=0)], counts)

    @property
    def whole(self) -> bool:
        """Whether every image has as many: then nothing is padding."""
        return all(count == self.values.shape[1] for count in self.counts)

    def present(self) -> Tensor:
        """Says what is no padding: bool [N, P]."""
        device = self.values.device
        return torch.arange(self.values.shape[1], device=device) < from_host(self.counts, device)[:, None]

    def each(self) -> list[Tensor]:
        """Returns the values of each image, [P_i, ...]: views."""
        return [values[:count] for values, count in zip(self.values.unbind(), self.counts, strict=True)]

    def flat(self) -> Tensor:
        """Returns the values of all images one after another, [sum P_i, ...]."""
        values = self.values.flatten(0, 1)
        if self.whole:
            return values
        most = self.values.shape[1]
        index = torch.cat([torch.arange(count) + i * most for i, count in enumerate(self.counts)])
        return values[from_host(index, values.device)]

    def image(self) -> Tensor:
        """Returns the image of each row of `flat`, int64 [sum P_i]."""
        if len(self) == 1:
            return torch.zeros(self.counts[0], dtype=torch.int64, device=self.values.device)
        return from_host(image_of_each(self.counts), self.values.device)
