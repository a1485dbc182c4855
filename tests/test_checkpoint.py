"""Checkpoints survive kills, damage and full disks, and models come back from them whole."""

import functools
import os
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from backbone import BACKBONES
from backbone.errors import InputError
from network_files.weight_files.architecture import infer_architecture
from tests import tiny_model
from tests.faults.processes import fill
from tests.small_runs import in_fork, same
from train_utils.checkpoints.checkpoint import (
    FORMAT_VERSION,
    copy_checkpoint,
    default_label_map,
    load_checkpoint,
    load_file,
    model_from_checkpoint,
    save_checkpoint,
)
from train_utils.cli.command import run_command
from train_utils.data.labels import LabelMap
from train_utils.io import files
from train_utils.io.files import write_text
from train_utils.io.unfinished import NAME, clear_leftovers


def content(value=1.0, **more):
    return {
        "format_version": FORMAT_VERSION,
        "model": {"w": torch.full((300, 7), value)},
        "config": {},
        "epoch": 2,
        "step": 30,
        "label_map": {},
        "progress": {"meters": [1.5, None, "x"]},
        **more,
    }


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- one file ----------------------------------------------------------------------------------------------


def test_round_trip_and_plain_torch_load(tmp_path):
    path = tmp_path / "model_2.pth"
    save_checkpoint(path, content())
    for loaded in (load_checkpoint(path), torch.load(path, weights_only=True)):
        assert torch.equal(loaded["model"]["w"], torch.ones(300, 7))
        assert loaded["progress"] == {"meters": [1.5, None, "x"]} and loaded["step"] == 30
    assert [p.name for p in tmp_path.iterdir()] == ["model_2.pth"]
    assert zipfile.ZipFile(path).comment.startswith(b"sha256=")


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "model_0.pth"
    save_checkpoint(path, content())
    whole = path.read_bytes()
    comment = len(zipfile.ZipFile(path).comment)
    for at in [*range(0, len(whole) - comment - 2, 97), len(whole) - comment - 3, len(whole) - comment + 10]:
        path.write_bytes(whole)
        flip_byte(path, at)
        with pytest.raises(InputError, match="model_0.pth"):
            load_file(path)
    near_the_end = range(len(whole) - comment - 30, len(whole), 7)
    for size in (0, 1, 100, len(whole) // 2, *near_the_end, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="model_0.pth"):
            load_file(path)


@pytest.mark.parametrize(
    "write, reason",
    [
        (lambda p: p.write_text("epoch:0 0.1"), "not a checkpoint"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "not a checkpoint"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
        (lambda p: torch.save({"a": Path("x")}, p), "not a checkpoint"),  # more than plain values
        (lambda p: p.mkdir(), "no such checkpoint file"),
        (lambda p: None, "no such checkpoint file"),
        (lambda p: torch.save({"w": torch.ones(1)}, p), "--weights"),
        (lambda p: save_checkpoint(p, content(format_version=FORMAT_VERSION + 1)), "newer version"),
    ],
)
def test_wrong_file_is_one_clear_line(tmp_path, write, reason):
    path = tmp_path / "model_1.pth"
    write(path)
    with pytest.raises(InputError, match=reason) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def save_filled(path, value):
    big = torch.full((2000, 300), float(value))
    save_checkpoint(path, {"format_version": FORMAT_VERSION, "model": big, "config": {}, "label_map": {}})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_kill_while_saving_leaves_the_old_file_whole(tmp_path):
    """The process is killed again and again within save_checkpoint; the file is always one of those saved."""
    path, within = tmp_path / "model_0.pth", 0
    save_filled(path, -1)
    for kill in range(8):
        child = os.fork()
        if child == 0:
            try:
                for value in range(10**6):
                    save_filled(path, value)
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.013 * kill)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended by itself"
        within += any(NAME.fullmatch(other.name) for other in tmp_path.iterdir())
        clear_leftovers(tmp_path)
        model = load_checkpoint(path)["model"]
        assert bool((model == model[0, 0]).all()), "two saves are mixed"
        assert [other.name for other in tmp_path.iterdir()] == [path.name]
    assert within > 0  # kills that came while a file was being written


def save_without_room(path):
    """save_checkpoint as a command, in a process that may write 50 kB into a file."""
    import resource  # POSIX has it

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    files.name_flags(["--output-dir", "--resume"])
    return run_command(lambda: save_checkpoint(path, {"w": torch.ones(100_000)}))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="file size limits are POSIX")
def test_no_room_is_one_line_and_keeps_the_old_file(tmp_path, capfd):
    path = tmp_path / "model_0.pth"
    save_checkpoint(path, content())
    assert in_fork(lambda: save_without_room(path)) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {path}: no room left to write it")
    assert "give another --output-dir; --resume goes on" in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model_0.pth"]
    load_checkpoint(path)


@pytest.mark.parametrize("save", [lambda p: save_checkpoint(p, content()), lambda p: write_text(p, "x")])
def test_folder_that_may_not_be_written_is_named(tmp_path, save, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"a.pth: may not be written .* that you may write to"):
        save(tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hard_links", [True, False])
def test_copy_is_independent_of_the_original(tmp_path, hard_links, monkeypatch):
    if not hard_links:

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    last, best = tmp_path / "model_3.pth", tmp_path / "model_best.pth"
    save_checkpoint(last, content(1.0))
    copy_checkpoint(last, best)
    copy_checkpoint(last, best)  # again, while both may be one file
    save_checkpoint(last, content(2.0))
    assert load_checkpoint(best)["model"]["w"][0, 0] == 1 and load_checkpoint(last)["model"]["w"][0, 0] == 2
    monkeypatch.setattr(os, "replace", lambda *_: fill())
    with pytest.raises(InputError, match=r"model_best.pth: no room left to write it"):
        copy_checkpoint(last, best)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_3.pth", "model_best.pth"]


# --- models ------------------------------------------------------------------------------------------------


tiny = functools.partial(tiny_model.tiny, box_head_channels=24, mask_head_channels=8, mask_head_layers=2)
SAVED = functools.cache(tiny)


def saved_model(path, **more):
    model = SAVED()
    names = LabelMap.from_categories({3: "cat", 7: "dog", 90: "hat"})
    save_checkpoint(
        path, content(model=model.state_dict(), config=model.config.to_dict(), label_map=names.to_dict(), **more)
    )
    return model, names


def test_checkpoint_tells_model_and_names(tmp_path):
    path = tmp_path / "model_0.pth"
    saved, names = saved_model(path)
    model, label_map = model_from_checkpoint(path, box_score_thresh=0.7)
    assert same(model.state_dict(), saved.state_dict()) and not model.training
    assert label_map == names and model.config.box_score_thresh == 0.7
    assert model.config.fpn_channels == 16 and model.config.min_size == (64,)


def test_averaged_weights_are_preferred(tmp_path):
    path = tmp_path / "model_0.pth"
    average = {k: v + 1 for k, v in SAVED().state_dict().items()}
    saved_model(path, ema=average)
    assert same(model_from_checkpoint(path)[0].state_dict(), average)


def test_model_flags_and_names_that_do_not_fit(tmp_path):
    path = tmp_path / "model_0.pth"
    saved_model(path)
    for flags, reason in (
        (dict(fpn_channels=8), "does not fit the model flags .*fpn"),
        (dict(label_map=LabelMap.from_names({1: "a"})), "list of names has 1"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            model_from_checkpoint(path, **flags)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"norm": "group"},
        {"variant": "v2", "box_head_convs": 1, "num_classes": 91},
        {"backbone": "resnet34", "mask_head_layers": 4},
    ],
)
def test_bare_state_dict_tells_the_architecture(config, tmp_path):
    model = tiny(**config)
    path = tmp_path / "bare.pth"
    torch.save(model.state_dict(), path)
    untold = {key: tiny_model.FIELDS[key] for key in ("min_size", "max_size", "anchor_sizes")}
    loaded, label_map = model_from_checkpoint(path, **untold)
    assert loaded.config == model.config
    assert same(loaded.state_dict(), model.state_dict())
    expected = "person" if config.get("num_classes") == 91 else "class 1"
    assert label_map.name(1) == expected and label_map.num_labels == model.config.num_classes


@pytest.mark.parametrize("depth, blocks", [(101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))])
def test_deep_resnets_are_told_apart(depth, blocks):
    with torch.device("meta"):
        state = tiny(backbone=f"resnet{depth}").state_dict()
    assert infer_architecture(state)["backbone"] == f"resnet{depth}"


def test_torchvision_state_dicts_tell_their_architecture():
    from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

    for build, variant in ((maskrcnn_resnet50_fpn, "v1"), (maskrcnn_resnet50_fpn_v2, "v2")):
        with torch.device("meta"):
            state = build(weights=None, weights_backbone=None, num_classes=5).state_dict()
        uncounted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        wrapped = {"model": {"module." + key: value for key, value in uncounted.items()}, "epoch": 3}
        for content, norm in ((state, "batch"), (uncounted, "frozen"), (wrapped, "frozen")):
            assert infer_architecture(content) == {
                "num_classes": 5,
                "backbone": "resnet50",
                "variant": variant,
                "norm": norm,
                "backbone_width": 64,
                "fpn_channels": 256,
                "box_head_channels": 1024,
                "mask_head_channels": 256,
                "mask_head_layers": 4,
                **({"box_head_convs": 4} if variant == "v2" else {}),
            }


def test_older_spelling_of_keys_is_understood():
    state = tiny_model.older_names(SAVED().state_dict(), "module.")
    assert "module.roi_heads.mask_head.mask_fcn1.weight" in state
    found = infer_architecture(state)
    assert [found[f"{part}_channels"] for part in ("fpn", "box_head", "mask_head")] == [16, 24, 8]
    assert found["mask_head_layers"] == 2


def test_damaged_content_is_named(tmp_path):
    path = tmp_path / "x.pth"
    saved_model(path)
    whole = torch.load(path, weights_only=True)
    for change, reason in (
        ({"format_version": "1"}, "format version '1' is not a number"),
        ({"label_map": {"labels": [1]}}, "label map: labels, category_ids and names"),
        ({"label_map": None}, "label map: labels, category_ids and names"),
    ):
        save_checkpoint(path, {**whole, **change})
        with pytest.raises(InputError, match=reason):
            model_from_checkpoint(path)


def test_other_state_dict_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"fc.weight": torch.ones(3, 3)}, path)
    with pytest.raises(InputError, match="x.pth: not the weights of a Mask R-CNN"):
        model_from_checkpoint(path)


def test_default_names():
    coco = default_label_map(91)
    assert (coco.num_labels, len(coco), coco.name(90), coco.name(12)) == (91, 80, "toothbrush", "N/A")
    assert default_label_map(3).names == ("class 1", "class 2")


class Body(nn.Module):
    """A body of one's own: its keys are those of no published one."""

    def __init__(self, norm, width):
        super().__init__()
        self.out_channels = (width, 2 * width, 4 * width, 8 * width)
        pairs = zip((3, *self.out_channels[:3]), self.out_channels, strict=True)
        self.parts = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, 4 if a == 3 else 2, 1), norm(b)) for a, b in pairs)

    def freeze(self, trainable_layers):
        pass

    def forward(self, x):
        return [x := part(x) for part in self.parts]


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_a_bare_state_dict_of_a_backbone_of_ones_own(norm, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "mine", Body)
    state = tiny_model.tiny(3, backbone="mine", norm=norm, backbone_width=None).state_dict()
    torch.save(state, path := tmp_path / "mine.pth")
    with pytest.raises(InputError, match="no known ResNet or MobileNet .* of another one give the name: backbone$"):
        model_from_checkpoint(path)
    model, label_map = model_from_checkpoint(path, backbone="mine")
    assert same(dict(model.state_dict()), dict(state)) and label_map.num_labels == 3
    assert (model.config.backbone, model.config.norm, model.config.backbone_width) == ("mine", norm, 64)
