"""Norm over all processes: means and variances are those of all images, of processes that have any; a trial is apart.

Torch has its parts for GPUs alone: `on_cpu` puts their formulas in their place, and two processes exchange by gloo.
"""

import os
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbone.norm import APART, UNCOUNTED, SyncBatchNorm, sync_norms
from network_files import MaskRCNN
from tests.faults.processes import context, end_all, free_port
from tests.tiny_model import FEW, tiny
from train_utils.data.loaders import Batch
from train_utils.processes.distributed import World
from train_utils.run import config as run_config
from train_utils.run.optimization import Precision, TrainState
from train_utils.run.step import accumulate_gradients
from train_utils.run.tuning import batches

SIZES = [(2, 3, 4, 5), (1, 3, 6, 7)]  # what each process has
SMALL = {**FEW, "backbone_width": 16, "variant": "v2", "trainable_layers": 5, "min_size": 64, "max_size": 64}


def of(rank):
    """A process's values, and what its loss multiplies them with."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(SIZES[rank], generator=generator, dtype=torch.float64) for _ in range(2)]


def layer():
    norm = SyncBatchNorm(3).double()
    norm.weight.data, norm.bias.data = torch.tensor([[0.5, 2, -1], [0.1, 0.2, 0.3]]).double()
    return norm


def wide(values):  # [C] -> [C, 1, 1]
    return values[:, None, None]


def stats(x, eps):
    return x.mean((0, 2, 3)), (x.var((0, 2, 3), unbiased=False) + eps).rsqrt()


def gathered(x, means, inverse, running_mean, running_var, momentum, eps, counts):
    count, share = counts.sum(), counts[:, None] / counts.sum().clamp(min=1)
    mean = (means * share).sum(0)
    var = ((inverse**-2 - eps + (means - mean) ** 2) * share).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * count / (count - 1), momentum)
    return mean, (var + eps).rsqrt()


def normalised(x, weight, bias, mean, inverse, eps):
    return (x - wide(mean)) * wide(inverse * weight) + wide(bias)


def reduced(grad, x, mean, inverse, weight, *needs):
    total, along = grad.sum((0, 2, 3)), (grad * (x - wide(mean))).sum((0, 2, 3))
    return total, along, along * inverse, total


def backward(grad, x, mean, inverse, weight, total, along, counts):
    count = counts.sum()
    return (grad - wide(total / count) - (x - wide(mean)) * wide(inverse**2 * along / count)) * wide(inverse * weight)


def on_cpu():
    """Lets this process's sync norms compute on its CPU."""
    torch.batch_norm_stats, torch.batch_norm_gather_stats_with_counts = stats, gathered
    torch.batch_norm_elemt = normalised
    torch.batch_norm_backward_reduce, torch.batch_norm_backward_elemt = reduced, backward
    name, norms = torch._C._get_privateuse1_backend_name, nn.modules.batchnorm.__name__
    torch._C._get_privateuse1_backend_name = lambda: (
        "cpu" if sys._getframe(1).f_globals["__name__"] == norms else name()
    )
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = MaskRCNN._check_device = lambda *_: None


def passes(rank, part=None):
    """Both passes of a layer: what they give."""
    norm, (x, cotangent) = layer(), of(rank)
    x.requires_grad_()
    with sync_norms(norm, part or norm.part):
        y = norm(x)
    (y * (0 if part == UNCOUNTED else 1) * cotangent).sum().backward()
    return {
        "y": y.detach(),
        "x": x.grad,
        "running": torch.stack((norm.running_mean, norm.running_var)),
        "part": norm.part,
        "weights": torch.stack((norm.weight.grad, norm.bias.grad)),
    }


def photo():
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[:, 10:40, 8:50] = 1
    target = {"boxes": torch.tensor([[8.0, 10, 50, 40]]), "labels": torch.tensor([1]), "masks": mask, "sample_seed": 3}
    return image, target | {"iscrowd": torch.zeros(1, dtype=torch.uint8)}


def model_of(norm):
    torch.manual_seed(0)
    return tiny(2, norm=norm, **SMALL).double().train()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


class Photos:
    sizes = torch.tensor([[64, 64]] * 8)

    def object_counts(self):
        return torch.ones(8, dtype=torch.int64).numpy()

    def __getitem__(self, i):
        return photo()


def trial(world):
    """`--batch-size auto` where the second process lacks memory for more than two images, in the middle of its pass."""
    model, losses = model_of("sync"), MaskRCNN.forward

    def scarce(self, images, targets=None, **more):
        if world.rank == 1 and len(images) > 2:
            self.backbone.body(torch.zeros(1, 3, 64, 64).double())
            raise torch.OutOfMemoryError("out of memory")
        return losses(self, images, targets, **more)

    MaskRCNN.forward = scarce
    try:
        config = run_config.RunConfig(batch_size=8).filled({"optimizer": "sgd"})
        chosen, _ = batches.fitting_batch(model, Photos(), config, Precision(world.device), world)
    finally:
        MaskRCNN.forward = losses
    return chosen.batch_size, chosen.accumulate_steps, {name: b.clone() for name, b in model.named_buffers()}


def run(rank, port, out):
    """A process's part; writes what it got."""
    os.setpgrp()  # a group of its own, as `end_all` kills it
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    on_cpu()
    world = World.from_environment("cpu", timeout=20)
    got = {"all": passes(rank), "first": passes(rank, UNCOUNTED if rank else None)}
    got |= {"none": passes(rank, UNCOUNTED), "apart": passes(rank, APART), "trial": trial(world)}
    model = model_of("sync")
    state = TrainState(model, world.wrap(model), None, None, Precision(world.device))
    image, target = photo()
    batch = Batch([], [], [], []) if rank else Batch([image], [target], [0], [])
    accumulate_gradients(state, [batch], world)
    got["step"] = gradients(model), {name: b.clone() for name, b in model.named_buffers()}
    torch.save(got, out / f"{rank}.pt")
    world.close()


@pytest.fixture(scope="module")
def got(tmp_path_factory):
    out, port = tmp_path_factory.mktemp("norm"), free_port()
    processes = [context().Process(target=run, args=(rank, port, out)) for rank in range(2)]
    for process in processes:
        process.start()
    assert end_all(processes, 60) == [0, 0]  # what went wrong is on standard error
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


def formula(ranks):
    """What batch norm over the values of those processes gives, and each one's gradients of the weights."""
    pairs = [of(rank) for rank in ranks]
    weight, bias = (layer().weight.detach().requires_grad_(), layer().bias.detach().requires_grad_())
    xs = [x.requires_grad_() for x, _ in pairs]
    flat = torch.cat([x.transpose(0, 1).flatten(1) for x in xs], 1)  # [C, values]
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    y = F.batch_norm(flat.T, mean, var, weight, bias, training=True).T
    ys = [
        part.unflatten(1, (x.shape[0], -1)).transpose(0, 1).view_as(x)
        for part, x in zip(y.split([x.numel() // 3 for x in xs], 1), xs, strict=True)
    ]
    sum((y * cotangent).sum() for y, (_, cotangent) in zip(ys, pairs, strict=True)).backward()
    weights = torch.stack((weight.grad, bias.grad))
    return ys, [x.grad for x in xs], torch.stack((mean, var)), weights


def test_a_norm_is_over_the_values_of_all_processes(got):
    ys, xs, running, weights = formula([0, 1])
    for rank in range(2):
        torch.testing.assert_close(
            [got[rank]["all"][key] for key in ("y", "x", "running")], [ys[rank], xs[rank], running]
        )
    torch.testing.assert_close(got[0]["all"]["weights"] + got[1]["all"]["weights"], weights)


def test_a_process_without_images_counts_for_nothing(got):
    (y,), (x,), running, weights = formula([0])
    first, second = (rank["first"] for rank in got)
    torch.testing.assert_close([first[key] for key in ("y", "x", "running", "weights")], [y, x, running, weights])
    torch.testing.assert_close(second["running"], running)
    assert not second["x"].any() and not second["weights"].any() and second["part"] == "together"
    for rank in got:
        assert torch.equal(rank["none"]["running"], torch.tensor([[0.0] * 3, [1.0] * 3]).double())
        assert rank["none"]["y"].isfinite().all()


def test_a_pass_apart_is_by_the_own_values(got):
    for rank in range(2):
        (y,), (x,), _, weights = formula([rank])
        apart = got[rank]["apart"]
        torch.testing.assert_close([apart[key] for key in ("y", "x", "weights")], [y, x, weights])
        assert torch.equal(apart["running"], torch.tensor([[0.0] * 3, [1.0] * 3]).double())
    with sync_norms(norm := layer(), APART):
        assert (
            norm(torch.ones(1, 3, 1, 1).double()).isfinite().all()
            and norm(torch.ones(0, 3, 2, 2).double()).numel() == 0
        )


def test_the_batch_is_halved_where_one_process_lacks_memory(got):
    """The other one does not wait for means and variances that never come."""
    before = dict(model_of("sync").named_buffers())
    for rank in got:
        batch, accumulate, buffers = rank["trial"]
        assert (batch, accumulate) == (2, 4)
        torch.testing.assert_close(buffers, before, rtol=0, atol=0)


def test_a_step_in_which_one_process_has_no_image_is_a_step_of_the_others(got):
    alone = model_of("batch")
    image, target = photo()
    sum(alone([image], [target]).values()).backward()
    expected = {name: grad / 2 for name, grad in gradients(alone).items()}
    (first, buffers), (second, kept) = (rank["step"] for rank in got)
    torch.testing.assert_close(first, expected, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(buffers, dict(alone.named_buffers()), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(kept, dict(model_of("batch").named_buffers()), rtol=0, atol=0)
