"""MobileNets: V2 against torchvision's, V1 against a plain stack of layers; widths, freezing, weights, training."""

import pytest
import torch
import torchvision
from torch import nn

import train
from backbone import InputError, build_backbone
from network_files import create_model, load_weights
from network_files.weight_files.architecture import describe, infer_architecture
from tests.small_runs import call, flags
from tests.test_backbone import randomise_norms, shapes
from tests.test_mask_rcnn import OBJECTS, noise_image, target, tiny
from tests.tiny_model import write_coco
from train_utils.run.defaults import default_weights

NAMES = ["mobilenet_v1", "mobilenet_v2"]
USED = {"mobilenet_v1": (3, 5, 11, 13), "mobilenet_v2": (3, 6, 13, 18)}  # the layers whose output is a map


def plain_v1(width=32):
    """The paper's table 1, one layer after another, in a list of stages."""

    def unit(c_in, c_out, kernel, stride, groups=1):
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(c_out), nn.ReLU6()]

    table = [
        (32, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        *[(512, 512, 1)] * 5,
        (512, 1024, 2),
        (1024, 1024, 1),
    ]
    layers = [nn.Sequential(*unit(3, width, 3, 2))]
    for c_in, c_out, stride in table:
        c_in, c_out = c_in * width // 32, c_out * width // 32
        layers.append(nn.Sequential(*unit(c_in, c_in, 3, stride, c_in), *unit(c_in, c_out, 1, 1)))
    return nn.Sequential(*layers)


def oracle(name, width=32):
    if name == "mobilenet_v1":
        return plain_v1(width)
    return torchvision.models.mobilenet_v2(width_mult=width / 32).features


def copy_in_order(theirs, ours):
    """The tensors of one state dict under the names of the other: both list them in the order of the layers."""
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [32, 16])
@pytest.mark.parametrize("training", [False, True])
def test_maps_equal_the_reference(name, width, training):
    theirs = oracle(name, width)
    randomise_norms(theirs)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(2, 6)  # so that some activations reach 6
    ours = build_backbone(name, "batch", 5, fpn_channels=8, width=width).body
    copy_in_order(theirs, ours)
    ours, theirs = ours.double().train(training), theirs.double().train(training)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    found, expected, value = ours(x), [], x
    for i, layer in enumerate(theirs):
        value = layer(value)
        expected += [value] if i in USED[name] else []
    for a, b, stride, channels in zip(found, expected, (4, 8, 16, 32), ours.out_channels, strict=True):
        assert a.shape == (2, channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    stem = [next(model.parameters()) for model in (ours, theirs)]
    grads = [
        torch.autograd.grad(sum(m.square().sum() for m in maps), weight)[0]
        for maps, weight in zip((found, expected), stem, strict=True)
    ]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9 * float(grads[1].abs().max()))


def test_v2_has_torchvisions_keys():
    with torch.device("meta"):
        for width in (8, 16, 24, 32):
            theirs = torchvision.models.mobilenet_v2(width_mult=width / 32)
            expected = {k: v for k, v in shapes(theirs).items() if not k.startswith("classifier.")}
            assert shapes(build_backbone("mobilenet_v2", "batch", 5, width=width).body) == expected


@pytest.mark.parametrize("name", NAMES)
def test_folded_frozen_norms_equal_batch_norms_in_evaluation(name):
    batch, frozen = (build_backbone(name, norm, 5, fpn_channels=8, width=8).double() for norm in ("batch", "frozen"))
    randomise_norms(batch)
    frozen.load_state_dict(batch.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for a, b in zip(frozen(x), batch.eval()(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NAMES)
def test_stages_freeze_from_the_image_upwards(name):
    for trainable in range(6):
        body = build_backbone(name, "batch", trainable, fpn_channels=8, width=8).body
        first = ([-1, *body.ends])[5 - trainable] + 1
        frozen = [not any(p.requires_grad for p in layer.parameters()) for layer in body.features]
        assert frozen == [i < first for i in range(len(body.features))]
        assert all(p.requires_grad for p in body.features[first:].parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_a_bare_state_dict_tells_the_body(name, norm):
    with torch.device("meta"):
        model = create_model(4, name, norm=norm, backbone_width=24, fpn_channels=16)
    found = infer_architecture(model.state_dict())
    assert (found["backbone"], found["backbone_width"], found["norm"]) == (name, 24, norm)
    assert describe(model.state_dict()).startswith(f"{name} v1 for 3 classes (24 channels in the stem")


def test_widths():
    assert create_model(2, "mobilenet_v2", fpn_channels=8, box_head_channels=8).config.backbone_width == 32
    assert create_model(2, "resnet18", fpn_channels=8, box_head_channels=8).config.backbone_width == 64
    with pytest.raises(InputError, match="backbone_width is 20: a MobileNet's is a multiple of 8"):
        create_model(2, "mobilenet_v1", backbone_width=20)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_recomputing_gives_the_same_gradient_from_fewer_activations(name, norm):
    model = tiny(norm=norm, backbone=name, backbone_width=32, trainable_layers=5).train()
    seen = []
    for _ in range(2):
        kept = {}  # bytes of each storage
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}), t)[1],
            lambda t: t,
        ):
            loss = sum(model([noise_image()], [target(OBJECTS, sample_seed=3)]).values())
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        seen.append((sum(kept.values()), gradients))
        model.recompute_activations()
    assert seen[1][0] < 0.4 * seen[0][0]
    assert all(torch.equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))


class TestWeights:
    def test_a_whole_file_goes_into_the_body(self, shared_data):
        path = shared_data / "weights" / "mobilenet_v2_from_int8.pth"
        model = create_model(4, "mobilenet_v2", fpn_channels=8, box_head_channels=8)
        lines = load_weights(model, path)
        assert lines == [f"weights: {path} (260 tensors into the backbone)"]
        file, body = torch.load(path, weights_only=True), model.backbone.body.state_dict()
        assert len(body) == 260 and all(torch.equal(value, file[key]) for key, value in body.items())

    def test_a_part_says_what_is_missing(self):
        model = create_model(4, "mobilenet_v2", fpn_channels=8, box_head_channels=8)
        state = {k: v for k, v in model.backbone.body.state_dict().items() if not k.startswith("features.18.")}
        assert "5 tensors of features.18" in load_weights(model, state)[1]

    def test_what_is_published(self):
        model = create_model(4, "mobilenet_v1", fpn_channels=8, box_head_channels=8)
        with pytest.raises(InputError, match="no imagenet weights for mobilenet_v1 .*mobilenet_v2"):
            load_weights(model, "imagenet")
        assert default_weights("mobilenet_v1", None) == "none" and default_weights("mobilenet_v2", "v2") == "imagenet"

    def test_group_norm_weights_are_refused_elsewhere(self):
        with torch.device("meta"):
            group, batch = (create_model(2, "mobilenet_v2", norm=norm) for norm in ("group", "batch"))
        with pytest.raises(InputError, match="need norm group"):
            load_weights(batch, group.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_resumes_and_evaluates(name, tmp_path, capsys):
    data = write_coco(tmp_path / "data")
    mine = ["--backbone", name, "--backbone-width", 8]
    assert call(train, *flags(data, tmp_path / "run", *mine, "--epochs", 1)) == 0, capsys.readouterr()
    more = flags(data, tmp_path / "run", *mine, "--resume", "auto", "--allow-changed", "epochs")
    assert call(train, *more) == 0, capsys.readouterr()
    assert f"Mask R-CNN v1, {name}, 3 classes" in capsys.readouterr().out
    config = torch.load(tmp_path / "run" / "model_1.pth", weights_only=True)["config"]
    assert (config["backbone"], config["backbone_width"]) == (name, 8)
