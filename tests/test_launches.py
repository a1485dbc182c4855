"""The way that the network goes on a GPU, taken on a CPU: the same numbers, few operators, and hardly a wait."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.device import launches
from benchmarks.device.gpu import TINY
from benchmarks.device.pretended import Pretended, to_device
from network_files.operators import nms as nms_module
from network_files.operators import padded
from network_files.operators.nms import nms, nms_of_rows
from network_files.operators.padded import HostCopy, Padded
from network_files.transform import ImageBatch, prepare_objects
from tests.plain_loops import random_boxes
from tests.test_recorder import sample
from tests.tiny_model import FEW, tiny, tiny_model


def batch_of(count, crowd=False):
    """Images of two sizes with 3, 1 and no objects, or 3 with a crowd among them; and their targets."""
    images, targets = map(list, zip(*(sample(i, 60 + 4 * (i % 2)) for i in range(count)), strict=True))
    for i, target in enumerate(targets):
        chosen = torch.arange(3)[: (3, 1, 0)[i % 3]]
        targets[i] = {k: v[chosen] if hasattr(v, "__len__") else v for k, v in target.items()} | {"sample_seed": i}
    if crowd:
        targets[0]["iscrowd"] = torch.tensor([0, 1, 0], dtype=torch.uint8)
    return images, targets


def passes(images, targets):
    """Losses, their gradient, and detections."""
    model = tiny_model().train()
    losses = model(images, targets)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(sum(losses.values()), parameters)
    with torch.inference_mode():
        return losses, gradient, model.eval()(images, paste_masks=False)


def test_both_ways_give_the_same(monkeypatch):
    inputs, found = batch_of(3, crowd=True), []
    for cheap in (("cpu",), ()):
        monkeypatch.setattr(padded, "CHEAP", cheap)
        found.append(passes(*inputs))
    (losses, gradient, detections), (others, other_gradient, other_detections) = found
    for a, b in zip((*losses.values(), *gradient), (*others.values(), *other_gradient), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert all(len(d["scores"]) > 3 for d in detections)
    for one, other in zip(detections, other_detections, strict=True):
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=0, atol=1e-6)


def test_operators_and_waits_stay_few_whatever_the_batch():
    """No tensor of the host enters an operator of the device either: `Pretended` would raise."""
    found = {}
    for count in (1, 3):
        images, targets = batch_of(count)
        with Pretended() as device:
            model = to_device(tiny(norm="frozen", **FEW))
            step, waits = launches.counted(device, launches.loop_step(model, images, targets))
            detected = launches.counted(device, launches.detection(model, to_device(images), ours=True))
        assert waits == 3 and detected[1] == 3
        found[count] = step, detected[0]
    (step, detected), (step_of_3, detected_of_3) = found.values()
    assert step < 1180 and detected < 550
    assert step_of_3 - step < 2 * 60 and detected_of_3 - detected < 2 * 40  # for each further image


def test_the_device_that_is_not_there_gives_the_same():
    images, targets = batch_of(3, crowd=True)
    losses, _, detections = passes(images, targets)
    with Pretended():
        model = to_device(tiny_model()).train()
        on_device = model(to_device(images), targets)
        sum(on_device.values()).backward()
        assert all(p.grad.device.type == "meta" for p in model.parameters() if p.grad is not None)
        with torch.no_grad():
            found = model.eval()(to_device(images))
        for name, loss in losses.items():
            assert abs(float(on_device[name].detach()) - float(loss.detach())) < 1e-5
        for one, other, image in zip(detections, found, images, strict=True):
            torch.testing.assert_close(one["boxes"], other["boxes"].cpu(), rtol=0, atol=1e-4)
            assert other["masks"].shape == (len(one["scores"]), 1, *image.shape[1:])


def test_masks_of_crowds_may_stay_where_tensors_alone_are_moved():
    """As in training loops that move the tensors of a target, of which CroppedMasks are none."""
    images, targets = batch_of(1, crowd=True)
    with Pretended():
        target = {k: to_device(v) if isinstance(v, torch.Tensor) else v for k, v in targets[0].items()}
        size = tuple(images[0].shape[1:])
        batch = ImageBatch(to_device(torch.zeros(1, 3, *size)), [size], [size])
        (masks,) = prepare_objects([target], batch, 4).masks
    assert torch.equal(masks.to_masks(), targets[0]["masks"].to_masks()[[0, 2]])


def test_what_is_counted():
    with Pretended(with_places=True) as seen:
        x = to_device(torch.arange(4))
        seen.operators = seen.waits = 0
        seen.places.clear()
        x[x > 1].tolist()
        torch.repeat_interleave(x)
        torch.repeat_interleave(x, output_size=6)
        int(x.sum())
        x.nonzero()
        early, late = HostCopy(x), HostCopy(x)
        early.read()  # a wait for what was queued until then
        late.read()
        x.cpu()
        torch.arange(4).nonzero()  # the host's own
        with pytest.raises(RuntimeError, match=r"a tensor \[4\] of the host beside one of the device"):
            x + torch.arange(4)
    assert seen.waits == 7 and seen.operators == 14
    places = sum(n for place, n in seen.places.items() if "tests/test_launches.py" in place)
    assert places == seen.waits + seen.operators - 2  # HostCopy's own


def test_a_copy_is_waited_for_on_the_tensors_own_gpu(monkeypatch):
    class Stream:
        def record_event(self):
            told.append("recorded")
            return SimpleNamespace(synchronize=lambda: told.append("waited"))

    told, own = [], torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: told.append(device) or Stream())
    sent = SimpleNamespace(is_cuda=True, is_mps=False, device=own, to=lambda *_, **how: told.append(how) or "copy")
    copy = HostCopy(sent)
    assert told == [{"non_blocking": True}, own, "recorded"] and copy.read() == "copy" and told[-1] == "waited"
    HostCopy(SimpleNamespace(is_cuda=False, is_mps=True, to=lambda *_, **how: told.append(how))).read()
    assert told[-1] == {"non_blocking": False}


@pytest.mark.slow
def test_the_table_stands_beside_torchvisions(capsys, monkeypatch):
    monkeypatch.setattr(launches, "SMALL", TINY)
    main(["launches", "--images", "1", "--places", "2"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1:-1] for line in lines[2:] if line.startswith("|")]
    assert [row[0].strip() for row in rows] == ["training step", "detection before pasting"] and len(lines) == 8
    (ours, _), (theirs, _) = ((int(n.replace(",", "")) for n in cell.split("/")) for cell in rows[0][2:])
    assert 500 < ours < 2000 and 500 < theirs < 2000


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("way", ["pairs", "at once", "at once, in portions"])
def test_rows_are_each_their_own(way, grouped, monkeypatch):
    if way != "pairs":
        monkeypatch.setattr(padded, "CHEAP", ())
        monkeypatch.setattr(nms_module, "ROUNDS", 1)  # so that one look is not enough
    if "portions" in way:
        monkeypatch.setattr(nms_module, "OVERLAPS", 120**2)
    boxes = torch.stack([random_boxes(120, seed, extent=60.0) for seed in range(3)])  # [3, 120, 4]
    valid = torch.rand(3, 120, generator=torch.Generator().manual_seed(1)) < 0.8
    groups = torch.arange(120).remainder(3).expand(3, -1) if grouped else None
    keep, counts = nms_of_rows(boxes, valid, 0.4, groups)
    falling = torch.arange(120.0).neg()
    for row in range(3):
        wanted = []
        for group in range(3) if grouped else [None]:
            mine = (valid[row] if group is None else valid[row] & (groups[row] == group)).nonzero()[:, 0]
            wanted += mine[nms(boxes[row, mine], falling[mine], 0.4)].tolist()
        assert keep[row].nonzero()[:, 0].tolist() == sorted(wanted) and counts[row] == len(wanted)
        assert 0 < len(wanted) < int(valid[row].sum())


@pytest.mark.parametrize("counts", [[2, 0, 3], [2, 2], [0], [4]])
def test_padding_and_back(counts):
    parts = [torch.randn(count, 2) for count in counts]
    whole = Padded.of(parts)
    assert whole.values.shape == (len(counts), max(counts), 2) and whole.whole == (len(set(counts)) == 1)
    assert torch.equal(whole.flat(), torch.cat(parts)) and whole.present().sum(1).tolist() == counts
    assert all(torch.equal(a, b) for a, b in zip(whole.each(), parts, strict=True))
    assert whole.image().tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    assert whole[1:].counts == counts[1:] and whole[:1].values.shape[1] == counts[0]
