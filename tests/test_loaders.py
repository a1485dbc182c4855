"""Loaders: order, sharing among ranks, resuming, workers, grouping, unreadable images."""

import copy
import os
import random
import signal
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from network_files.operators.cropped_masks import CroppedMasks
from network_files.transform import padded_size
from tests.coco_folders import many, write
from train_utils.data import loaders
from train_utils.data.images import ImageError
from train_utils.data.in_python.data_sets import data_set_of
from train_utils.data.loaders import EvalLoader, TrainLoader, aspect_groups, global_batches, sample_rng, sample_seed
from train_utils.data.opening import open_data
from train_utils.data.options import LoaderOptions


def train_loader(ds, augment, world, *numbers, **options):
    return TrainLoader(ds, augment, world, LoaderOptions(*numbers, **options))


def eval_loader(ds, world, batch_size, workers=0, strict=False, **config):
    options = LoaderOptions(batch_size, workers=workers, strict=strict)
    return EvalLoader(ds, world, options, MaskRCNNConfig(**config))


class World:
    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size


TORN = ImageError("x.png", "torn")


class Numbered:
    """Images that hold their own index; those in `broken` cannot be read."""

    def __init__(self, sizes, broken=(), error=TORN):
        self.sizes = torch.as_tensor(sizes, dtype=torch.int64)
        self.broken, self.error = set(broken), error

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        if i in self.broken:
            raise copy.copy(self.error)  # one without the traceback of earlier times
        target = {"boxes": torch.zeros(0, 4), "image_id": i, "masks": CroppedMasks.empty((2, 2))}
        return torch.full((3, 2, 2), i, dtype=torch.uint8), target


def even(count):
    return Numbered([(20, 30)] * count)


def order(ds, world=None, batch_size=2, accumulate=1, epoch=0, first=0, **options):
    loader = train_loader(ds, None, world or World(), batch_size, accumulate, **options)
    return [batch.indices for batch in loader.epoch(epoch, first)]


def test_seeds_differ_by_every_part():
    seeds = {sample_seed(s, e, i, k) for s in range(4) for e in range(4) for i in range(11) for k in range(3)}
    assert len(seeds) == 4 * 4 * 11 * 3 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, 2, 3) == 8772550891410653430  # the same on every machine and version
    assert sample_rng(1, 2, 3, 1).initial_seed() == sample_seed(1, 2, 3, 1)


def test_each_epoch_has_each_image_once_in_another_order():
    first, second = order(even(12)), order(even(12), epoch=1)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(12)) and first != second
    assert order(even(12)) == first and order(even(12), seed=1) != first


@pytest.mark.parametrize(("ranks", "batch_size", "accumulate"), [(2, 2, 1), (4, 1, 1), (1, 1, 4), (2, 1, 2)])
def test_ranks_and_steps_share_the_same_global_batches(ranks, batch_size, accumulate):
    sizes = [(20, 30 + 7 * i) for i in range(19)]
    whole = order(Numbered(sizes), batch_size=4)
    parts = [order(Numbered(sizes), World(r, ranks), batch_size, accumulate) for r in range(ranks)]
    # micro-step a of rank r is slice a * ranks + r
    merged = [
        sum((parts[r][step * accumulate + a] for a in range(accumulate) for r in range(ranks)), [])
        for step in range(len(whole))
    ]
    assert merged == whole and len(whole) == 4
    assert all(len(micro) == batch_size for part in parts for micro in part)


def test_an_epoch_can_be_entered_at_any_step():
    ds = even(22)
    whole = order(ds, batch_size=2, accumulate=2)
    for step in (0, 3, 5):
        assert order(ds, batch_size=2, accumulate=2, first=step) == whole[2 * step :]
    assert train_loader(ds, None, World(), 2, 2).steps_per_epoch == 5 == len(whole) / 2


def test_the_only_batch_may_be_incomplete():
    parts = [order(even(3), World(r, 4), batch_size=2) for r in range(4)]
    assert sorted(len(part[0]) for part in parts) == [0, 1, 1, 1]
    assert sorted(sum((part[0] for part in parts), [])) == [0, 1, 2]
    assert train_loader(even(3), None, World(0, 4), 2).steps_per_epoch == 1


def test_what_is_dropped_changes_with_the_epoch():
    dropped = {tuple(set(range(9)) - set(sum(order(even(9), batch_size=4, epoch=e), []))) for e in range(12)}
    assert all(len(left) == 1 for left in dropped) and len(dropped) > 3


def test_aspect_groups_are_torchvisions():
    sizes = [(20, 10), (20, 11), (20, 19), (20, 20), (20, 21), (20, 41), (10, 90)]
    assert aspect_groups(sizes, 0).tolist() == [0, 0, 0, 1, 1, 1, 1]
    bounds = (2 ** np.linspace(-1, 1, 7)).tolist()
    expected = [sum(w / h >= bound for bound in bounds) for h, w in sizes]
    assert aspect_groups(sizes, 3).tolist() == expected and len(set(expected)) == 4
    assert aspect_groups(sizes, -1).tolist() == [0] * 7


def test_batches_are_of_one_group_as_far_as_possible():
    groups = np.array([0] * 10 + [1] * 11)
    batches = global_batches(groups, 4, seed=0, epoch=0)
    assert len(batches) == 5 and all(len(batch) == 4 for batch in batches)
    assert sum(len(set(groups[batch].tolist())) > 1 for batch in batches) <= 1
    assert len(set(sum(batches, []))) == 20
    places = {[len(set(groups[b])) for b in global_batches(groups, 4, 0, e)].index(2) for e in range(9)}
    assert len(places) > 1  # the mixed batch is not always the last


def rotate(image, target, rng):
    return image + torch.randint(0, 100, (1,), generator=rng).to(torch.uint8), target


def test_samples_do_not_depend_on_workers_ranks_or_where_the_epoch_is_entered():
    def samples(workers, world=None, first=0):
        loader = train_loader(even(8), rotate, world or World(), 2 // (world or World()).size, workers=workers)
        batches = [*loader.epoch(1), *loader.epoch(2, first)]
        return {
            (n, i): (int(image[0, 0, 0]), target["sample_seed"])
            for n, batch in enumerate(batches)
            for i, image, target in zip(batch.indices, batch.images, batch.targets, strict=True)
        }

    alone = samples(0)
    assert len(alone) == 16 and len({value for value, _ in alone.values()}) > 4
    assert samples(2) == alone and samples(1) == alone
    halves = [samples(w, World(r, 2)) for r, w in ((0, 0), (1, 2))]
    assert {**halves[0], **halves[1]} == alone
    assert samples(2, first=2).items() >= {key: v for key, v in alone.items() if key[0] < 4}.items()
    seeds = {seed for _, seed in alone.values()}
    assert seeds == {sample_seed(0, e, i) for e in (1, 2) for i in range(8)}


def test_repeats_are_samples_of_their_own():
    sizes = [(20, 30 + 15 * (i % 3)) for i in range(5)]

    def samples(workers=0, ranks=1, first=0, repeat=3):
        found = []
        for rank in range(ranks):
            world = World(rank, ranks)
            loader = train_loader(Numbered(sizes), rotate, world, 2 // ranks, workers=workers, repeat=repeat)
            for step, batch in enumerate(loader.epoch(4, first), first):
                rows = zip(batch.indices, batch.images, batch.targets, strict=True)
                found += [(step, i, t["image_id"], t["sample_seed"], int(image[0, 0, 0])) for i, image, t in rows]
        return sorted(found)

    alone = samples()
    assert len(alone) == 14 and train_loader(Numbered(sizes), None, World(), 2, repeat=3).steps_per_epoch == 7
    assert samples(workers=1) == samples(ranks=2) == alone
    assert samples(first=3) == [row for row in alone if row[0] >= 3]
    seeds = {seed: index for _, index, _, seed, _ in alone}
    assert len(seeds) == 14 and seeds.items() <= {sample_seed(0, 4, i): i % 5 for i in range(15)}.items()
    assert all(index == image_id for _, index, image_id, _, _ in alone)
    assert len({value - index for _, index, _, _, value in alone}) > 5  # each its own augmentation
    assert sorted(Counter(index for _, index, *_ in alone).values()) == [2, 3, 3, 3, 3]
    widths = [{sizes[i][1] for s, i, *_ in alone if s == step} for step in range(7)]
    assert sum(len(width) > 1 for width in widths) <= 2  # as far as possible of one group
    assert len(samples(repeat=1)) == 4


def test_a_pass_left_early_does_not_disturb_the_next():
    loader = train_loader(even(20), None, World(), 2, workers=2)
    for _, _ in zip(loader.epoch(0), range(2), strict=False):
        pass
    assert [batch.indices for batch in loader.epoch(1)] == order(even(20), epoch=1)


def test_loading_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    list(train_loader(even(6), rotate, World(), 2, workers=1).epoch(0))
    list(eval_loader(even(6), World(), 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_come_through_workers_as_they_were(tmp_path):
    write(tmp_path, many(4))
    ds = open_data(tmp_path, val_fraction=0.5).train
    for here, there in zip(eval_loader(ds, World(), 1), eval_loader(ds, World(), 1, workers=1), strict=True):
        assert torch.equal(here.images[0], there.images[0])
        a, b = here.targets[0], there.targets[0]
        assert a.keys() == b.keys() and a["masks"].size == b["masks"].size
        assert torch.equal(a["masks"].to_masks(), b["masks"].to_masks())
        assert all(torch.equal(a[key], b[key]) for key in ("boxes", "labels", "area", "iscrowd"))
        b["boxes"] += 1  # writable


class ThreadCount(Numbered):
    def __getitem__(self, i):
        image, target = super().__getitem__(i)
        return image, {**target, "threads": torch.get_num_threads(), "pid": os.getpid()}


def test_workers_compute_in_one_thread():
    batches = list(eval_loader(ThreadCount([(20, 30)] * 4), World(), 1, workers=2))
    assert {t["threads"] for batch in batches for t in batch.targets} == {1}
    assert os.getpid() not in {t["pid"] for batch in batches for t in batch.targets}


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_leave_their_slot_empty(workers):
    ds = Numbered([(20, 30)] * 4, broken=[1, 2])
    batches = list(train_loader(ds, None, World(), 2, workers=workers).epoch(0))
    assert sorted(sum((b.indices for b in batches), [])) == [0, 3]
    assert sum((b.skipped for b in batches), []) == ["x.png: torn"] * 2
    assert all(len(b.images) == len(b.targets) == len(b.indices) == 2 - len(b.skipped) for b in batches)
    assert sum(len(b.skipped) for b in eval_loader(ds, World(), 4, workers=workers)) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_keep_their_one_line(workers):
    torn = Numbered([(20, 30)] * 2, broken=[1])
    with pytest.raises(ImageError, match="^x.png: torn$"):
        list(train_loader(torn, None, World(), 2, workers=workers, strict=True).epoch(0))
    with pytest.raises(ImageError, match="^x.png: torn$"):
        list(eval_loader(torn, World(), 2, workers=workers, strict=True))
    wrong = Numbered([(20, 30)] * 2, broken=[1], error=InputError("a.json: annotation 3: wrong"))
    with pytest.raises(InputError, match="^a.json: annotation 3: wrong$"):
        list(train_loader(wrong, None, World(), 2, workers=workers).epoch(0))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_worker_outlives_a_signal_that_comes_before_it_is_ready(monkeypatch, number):
    start, main = loaders._start_worker, os.getpid()

    def signalled(worker):  # as of a terminal, to the whole group
        assert os.getpid() != main
        os.kill(os.getpid(), number)
        start(worker)

    monkeypatch.setattr(loaders, "_start_worker", signalled)
    assert [b.indices for b in eval_loader(even(2), World(), 1, workers=1)] == [[0], [1]]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()) & {number}


def test_evaluation_batches_have_one_padded_shape():
    rng = np.random.default_rng(0)
    sizes = rng.choice([30, 64, 90, 100], (23, 2))
    ds = Numbered(sizes)
    batches = [batch.indices for batch in eval_loader(ds, World(), 3, min_size=(50, 64), max_size=128)]
    assert sorted(sum(batches, [])) == list(range(23)) and max(map(len, batches)) == 3
    for batch in batches:
        assert len({padded_size(*sizes[i].tolist(), 64, 128, 32) for i in batch}) == 1
    assert len({padded_size(*size.tolist(), 64, 128, 32) for size in sizes}) > 3


def test_evaluation_batches_of_a_fixed_size_hold_any_images():
    sizes = np.random.default_rng(0).choice([30, 64, 90, 100], (23, 2))
    batches = [batch.indices for batch in eval_loader(Numbered(sizes), World(), 4, fixed_size=(64, 96))]
    assert sum(batches, []) == list(range(23)) and [len(batch) for batch in batches] == [4] * 5 + [3]


@pytest.mark.parametrize("ranks", [2, 3])
def test_evaluation_batches_are_dealt_whole(ranks):
    ds = Numbered([(30, 20 + 9 * (i % 4)) for i in range(17)])
    whole = [batch.indices for batch in eval_loader(ds, World(), 2)]
    for rank in range(ranks):
        loader = eval_loader(ds, World(rank, ranks), 2)
        assert [batch.indices for batch in loader] == whole[rank::ranks]
        assert len(loader) == len(whole[rank::ranks])
        assert [batch.indices for batch in loader] == whole[rank::ranks]  # again


class Drawing(torch.utils.data.Dataset):
    """Pairs with draws from all that a user's code may draw from."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        drawn = torch.rand(()), np.random.random(), random.random()  # noqa: NPY002
        masks = torch.zeros(1, 8, 8, dtype=torch.bool)
        masks[:, 2:6, 2:6] = True
        target = {"boxes": torch.tensor([[2, 2, 6, 6]]), "labels": torch.tensor([1]), "masks": masks}
        return torch.tensor(drawn)[:, None, None].expand(3, 8, 8), target


@pytest.mark.parametrize("workers", [0, 1])
def test_draws_of_a_torch_dataset_are_those_of_the_sample(workers):
    def draws(epoch, first=0):
        batches = train_loader(data_set_of(Drawing()), None, World(), 2, workers=workers).epoch(epoch, first)
        return [image[:, 0, 0].tolist() for batch in batches for image in batch.images]

    whole = draws(0)
    assert draws(0, 2) == whole[4:] and len(set(np.ravel(whole))) == 18
    assert set(np.ravel(draws(1))).isdisjoint(np.ravel(whole))
