"""The law of SparseRows: values and gradients of plain indexing, whatever the number and order of reads."""

import pytest
import torch

from network_files.operators.roi_align import FeatureTable, roi_align
from network_files.operators.sparse_rows import SparseRows

READS = [torch.tensor([[3, 0], [3, 3]]), torch.tensor([5, 3]), torch.zeros(0, dtype=torch.int64)]


@pytest.mark.parametrize("kinds", ["sss", "dss", "sds", "ssd", "ddd"])
def test_gradients_are_those_of_plain_indexing(kinds):
    values = torch.randn(6, 2, dtype=torch.float64)
    weights = [torch.randn(*index.shape, 2, dtype=torch.float64) for index in READS]
    plain, ours = values.clone().requires_grad_(), values.clone().requires_grad_()
    table, losses = SparseRows(ours), []
    for index, weight, kind in zip(READS, weights, kinds, strict=True):
        rows, own = table.sparse(index) if kind == "s" else (table.rows, index)
        assert torch.equal(rows[own], values[index]) and (kind == "d" or len(rows) == len(index.unique()))
        losses.append((rows[own] * weight).square().sum())
    expected = sum((plain[index] * weight).square().sum() for index, weight in zip(READS, weights, strict=True))
    for _ in range(2):  # what has waited the first time does not count again
        (found,) = torch.autograd.grad(sum(losses), ours, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, plain, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_sparse_read_makes_a_gradient_of_its_rows_alone():
    table, sizes = SparseRows(torch.randn(1000, 2, requires_grad=True)), []
    rows, index = table.sparse(torch.tensor([7, 7, 900]))
    rows.register_hook(lambda grad: sizes.append(len(grad)))
    rows[index].sum().backward()
    assert sizes == [2]


def test_released_rows_are_gone():
    table = SparseRows(torch.randn(3, 2))
    table.release()
    assert not hasattr(table, "rows")


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_of_roi_align_by_sparse_reads_equal_those_by_dense_ones(dense):
    maps = [torch.randn(2, 3, 64 // s, 96 // s, dtype=torch.float64, requires_grad=True) for s in (4, 8, 16, 32)]
    corner, size = torch.rand(2, 5, 2, dtype=torch.float64) * torch.tensor([70.0, 40], dtype=torch.float64)
    rois, found = torch.cat((corner, corner + size), 1), []
    batch_index, level = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0])
    for sparse in (False, True):
        table = FeatureTable(maps)
        first = roi_align(table, rois, batch_index, level, 7, sparse_grad=sparse)
        second = roi_align(table, rois + 1, batch_index, level, 3, sparse_grad=sparse and not dense)
        loss = first.square().sum() + second.square().sum()
        found.append((loss, *torch.autograd.grad(loss, maps)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
