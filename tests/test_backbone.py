"""ResNets and FPN: torchvision's names, shapes and numbers; norms; freezing."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from backbone import BACKBONES, FrozenBatchNorm2d, InputError, build_backbone
from backbone.feature_pyramid_network import FeaturePyramidNetwork
from backbone.norm import SyncBatchNorm, conv_norm, norm_layer

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
NORMS = {"frozen": TorchvisionFrozenBatchNorm2d, "batch": nn.BatchNorm2d}


def torchvision_backbone(name, norm, trainable=5, fpn_norm=None):
    body = getattr(torchvision.models, name)(norm_layer=NORMS[norm])
    return _resnet_fpn_extractor(body, trainable, norm_layer=fpn_norm)


def randomise_norms(model):
    """Norm statistics near their neutral values, and all different."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", ".1.weight")):
            tensor.data.uniform_(0.8, 1.2)
        elif name.endswith(("running_mean", "bias")):
            tensor.data.normal_(std=0.1)


def shapes(module):
    return {key: value.shape for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize(("norm", "fpn_norm"), [("frozen", False), ("batch", True)])
def test_keys_and_shapes_equal_torchvision(name, norm, fpn_norm):
    with torch.device("meta"):
        theirs = torchvision_backbone(name, norm, fpn_norm=nn.BatchNorm2d if fpn_norm else None)
        ours = build_backbone(name, norm, 5, fpn_norm=fpn_norm)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize(
    ("name", "norm", "fpn_norm", "training"),
    [
        ("resnet18", "frozen", False, True),
        ("resnet50", "frozen", False, False),
        ("resnet50", "batch", True, True),
        ("resnet18", "batch", True, False),
    ],
)
def test_maps_equal_torchvision(name, norm, fpn_norm, training):
    theirs = torchvision_backbone(name, norm, fpn_norm=nn.BatchNorm2d if fpn_norm else None)
    randomise_norms(theirs)
    ours = build_backbone(name, norm, 5, fpn_norm=fpn_norm)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.double().train(training), theirs.double().train(training)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected = theirs(images)
    found = ours(images)
    assert len(found) == len(expected) == 5
    for a, b, stride in zip(found, expected.values(), ours.strides, strict=True):
        assert a.shape == (2, 256, -(-64 // stride), -(-96 // stride))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
    (found_grad,) = torch.autograd.grad(found[0].sum() + found[4].sum(), ours.body.conv1.weight)
    (expected_grad,) = torch.autograd.grad(expected["0"].sum() + expected["pool"].sum(), theirs.body.conv1.weight)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-7, atol=1e-9 * expected_grad.abs().max().item())
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("trainable", range(6))
def test_the_same_parameters_train_as_in_torchvision(name, norm, trainable):
    with torch.device("meta"):
        theirs = torchvision_backbone(name, norm, trainable)
        ours = build_backbone(name, norm, trainable)
    expected = {key: p.requires_grad for key, p in theirs.named_parameters()}
    assert {key: p.requires_grad for key, p in ours.named_parameters()} == expected


class TestFrozenBatchNorm:
    @pytest.mark.parametrize("eps", [0.0, 1e-5])
    @pytest.mark.parametrize("bias", [False, True])
    def test_folding_equals_torchvision(self, eps, bias):
        conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias).double()
        theirs, ours = TorchvisionFrozenBatchNorm2d(6, eps).double(), FrozenBatchNorm2d(6, eps).double()
        for buffer in theirs.buffers():
            buffer.uniform_(0.2, 2)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
        expected = theirs(conv(x))
        for found in (conv_norm(x, conv, ours), ours(conv(x))):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("bias", [False, True])
    def test_folding_has_the_same_gradients_and_keeps_no_folded_weight(self, bias):
        conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias).double()
        norm = FrozenBatchNorm2d(6).double()
        for buffer in norm.buffers():
            buffer.uniform_(0.2, 2)
        x, kept = torch.randn(2, 4, 9, 9, dtype=torch.float64, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
            found = conv_norm(x, conv, norm)
        assert {x.data_ptr(), conv.weight.data_ptr()} < set(kept) and len(set(kept)) == 3  # and the scale
        expected = norm(conv(x))
        inputs, cotangent = [x, *conv.parameters()], torch.randn_like(expected)
        for a, b in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (found, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_folding_under_autocast_is_close_to_float32(self):
        conv, norm = nn.Conv2d(4, 6, 3, bias=False), FrozenBatchNorm2d(6)
        norm.weight.uniform_(0.5, 2)
        x = torch.randn(2, 4, 9, 9, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = conv_norm(x, conv, norm)
        assert found.dtype == torch.bfloat16
        grads, expected = (torch.autograd.grad(y.sum(), [x, conv.weight]) for y in (found, norm(conv(x))))
        for a, b in zip(grads, expected, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(b.abs().max()))

    def test_has_no_parameters_and_does_not_change_in_training(self):
        norm = FrozenBatchNorm2d(3).train()
        before = {k: v.clone() for k, v in norm.state_dict().items()}
        norm(torch.randn(4, 3, 5, 5))
        assert not list(norm.parameters())
        assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())

    def test_loads_a_batch_norms_state(self):
        batch = nn.BatchNorm2d(3)
        batch(torch.randn(4, 3, 5, 5))
        frozen = FrozenBatchNorm2d(3)
        frozen.load_state_dict(batch.state_dict())
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(frozen(x), batch.eval()(x))

    def test_what_is_kept_follows_the_buffers(self):
        norm, x = FrozenBatchNorm2d(3), torch.randn(2, 3, 4, 4)

        def check():
            wanted = (x - norm.running_mean[:, None, None]) * (norm.running_var + norm.eps).rsqrt()[:, None, None]
            wanted = wanted * norm.weight[:, None, None] + norm.bias[:, None, None]
            torch.testing.assert_close(norm(x), wanted)

        with torch.inference_mode():
            check()
        kept = norm.scale_and_shift()
        assert all(a is b for a, b in zip(kept, norm.scale_and_shift(), strict=True))
        conv_norm(x.requires_grad_(), nn.Conv2d(3, 3, 1), norm).sum().backward()  # kept by a backward pass too
        x = x.detach()
        norm.weight.uniform_(1, 2)
        check()
        with torch.no_grad():
            norm.state_dict()["running_mean"].copy_(torch.ones(3))  # as averaged weights are given
        check()
        norm.load_state_dict({name: value + 1 for name, value in norm.state_dict().items()})
        check()
        norm.bias = torch.full((3,), 5.0)
        check()
        norm.eps = 0.5
        check()
        assert norm.to(torch.float64)(x.double()).dtype == torch.float64
        assert copy.deepcopy(norm)._kept != norm._kept

    def test_an_unknown_norm_is_named(self):
        with pytest.raises(InputError, match="'layer'"):
            norm_layer("layer")


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("batch", nn.BatchNorm2d), ("sync", SyncBatchNorm), ("group", nn.GroupNorm), ("frozen", FrozenBatchNorm2d)],
)
def test_every_norm_layer_of_the_body_is_of_the_kind_asked_for(norm, kind):
    with torch.device("meta"):
        model = build_backbone("resnet50", norm, 5, fpn_norm=True)
    kinds = [
        type(m)
        for m in model.modules()
        if isinstance(m, (nn.modules.batchnorm._NormBase, nn.GroupNorm, FrozenBatchNorm2d))
    ]
    assert set(kinds) == {kind} and len(kinds) == 53 + 8


def test_group_norm_runs_and_copes_with_few_channels():
    assert norm_layer("group")(48).num_groups == 16
    maps = build_backbone("resnet18", "group", 5, fpn_channels=16, fpn_norm=True)(torch.randn(1, 3, 64, 64))
    assert all(m.isfinite().all() for m in maps)


def test_random_batch_norm_weights_keep_activations_in_bounds():
    maps = build_backbone("resnet50", "batch", 5).train()(torch.randn(2, 3, 64, 96))
    assert all(0.05 < m.std() < 20 for m in maps)


@pytest.mark.parametrize(
    ("name", "trainable", "message"),
    [("resnet51", 3, "resnet51"), ("resnet18", 6, "0 to 5"), ("resnet18", -1, "0 to 5")],
)
def test_what_does_not_exist_is_named(name, trainable, message):
    with pytest.raises(InputError, match=message):
        build_backbone(name, "frozen", trainable)


def test_all_five_resnets_are_offered():
    assert set(RESNETS) <= set(BACKBONES)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_finest_inner_map_is_computed_again_not_kept(frozen):
    """The gradients are those of the plain computation, and nothing of its size is saved beside the body's map."""
    torch.manual_seed(0)
    fpn = FeaturePyramidNetwork([8, 16, 16, 16], 8).double()
    sides = (12, 14), (6, 7), (3, 4), (2, 2)
    outcomes = []
    for over_images in (True, False):  # as if there were a batch norm, or not
        fpn.over_images = over_images
        generator = torch.Generator().manual_seed(1)
        maps = [
            torch.randn(3, c, *s, dtype=torch.float64, generator=generator)
            for c, s in zip((8, 16, 16, 16), sides, strict=True)
        ]
        for i, m in enumerate(maps):
            m.requires_grad_(not (frozen and i == 0))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            pyramid = fpn(maps)
        sum((p * p).sum() for p in pyramid).backward()
        grads = [t.grad for t in (*maps, *fpn.parameters())]
        fpn.zero_grad()
        large = {t.data_ptr() for t in saved if t.numel() == maps[0].numel() and t.data_ptr() != maps[0].data_ptr()}
        outcomes.append((pyramid, grads, len(large)))
    (plain, plain_grads, kept), (pyramid, grads, spared) = outcomes
    assert (kept, spared) == (1, 0)
    for one, two in zip((*plain, *plain_grads), (*pyramid, *grads), strict=True):
        assert one is two is None or torch.allclose(one, two, rtol=1e-12, atol=1e-12)


def test_batch_norm_in_the_pyramid_sees_all_images_at_once():
    assert build_backbone("resnet18", "batch", 5, 16, fpn_norm=True, width=16).fpn.over_images
    assert not build_backbone("resnet18", "group", 5, 16, fpn_norm=True, width=32).fpn.over_images
