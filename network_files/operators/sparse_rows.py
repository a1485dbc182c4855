"""A table of rows, read whole or a few rows at a time; the gradient of a few stays as small as they are.

Law: values and gradients are those of plain indexing, `rows[index]`, whatever the number and order of reads. Plain
indexing makes, for each read, a gradient as large as the table. Here a sparse read makes a gradient of its own rows
alone, which waits in a list until autograd has summed the gradients of all other reads; it is then added to their sum.
R rows of C channels, U of them used.
"""

import functools

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from network_files.operators.padded import cat_parts, waits_are_cheap

Waiting = list[tuple[Tensor, Tensor]]  # (int64 [U], gradient of these rows [U, C]) of each sparse read


class SparseRows:
    """rows [R, C]: to be read whole as `rows`, or in part by `sparse`.

    parts: the rows of several tables, [R_i, C] each, until `rows` is read, which joins them; none from then on.
    """

    def __init__(self, *parts: Tensor) -> None:
        self._waiting: Waiting = []
        self.parts: tuple[Tensor, ...] | None = parts

    @functools.cached_property
    def rows(self) -> Tensor:
        """All rows in one table."""
        if self.parts is None:
            raise AttributeError("the rows are released")
        rows, self.parts = cat_parts(self.parts), ()
        return _AddWaiting.apply(rows, self._waiting)

    def sparse(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rows that an index (int64, any shape) reads, each once: [U, C]; and the index into these.

        To find out which are the same the host waits; where that is dear, a row comes as often as it is read.
        """
        if waits_are_cheap(index.device):
            used, index = index.unique(return_inverse=True)
        else:
            used, index = index.flatten(), torch.arange(index.numel(), device=index.device).view_as(index)
        return _SparseRead.apply(self.rows, used, self._waiting), index

    def release(self) -> None:
        """Lets the memory of the rows go, after the last read."""
        self.parts = None
        self.__dict__.pop("rows", None)


class _SparseRead(torch.autograd.Function):
    """rows[used], whose gradient waits in the list."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, used: Tensor, waiting: Waiting) -> Tensor:
        ctx.used, ctx.waiting = used, waiting
        return rows[used]

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[None, None, None]:
        ctx.waiting.append((ctx.used, grad))
        return None, None, None


class _AddWaiting(torch.autograd.Function):
    """rows as they are. Autograd comes back here after every read of them, and adds the gradients that wait."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, waiting: Waiting) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.waiting = rows.shape, waiting
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor | None) -> tuple[Tensor | None, None]:
        while ctx.waiting:
            used, sparse = ctx.waiting.pop()
            grad = sparse.new_zeros(ctx.shape) if grad is None else grad
            grad.index_add_(
                0, used, sparse
            )  # in place: a gather, or maps cut from the rows, make a gradient of their own
        return grad, None
