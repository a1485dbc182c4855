"""The whole network: torchvision's detections, losses, gradients in float64; the laws of the contract."""

import json
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch

from benchmarks import torchvision_model as oracle
from network_files import CroppedMasks, InputError, MaskRCNNConfig, create_model, loss_portions, matching
from network_files.heads import mask_head
from tests import tiny_model

LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
# Initialisations that are left out where all weights are loaded: they take longer than the forward pass.
DRAWN = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_")
SMALL = {
    "min_size": 64,
    "max_size": 96,
    "rpn_post_nms_top_n_train": 60,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 8,
    "box_detections_per_img": 4,
}
# one with an image large enough that RoIs reach P4; anchors that fit small images for v2
CASES = {
    "v1": {"backbone": "resnet50", "variant": "v1"},
    "v1-large": {"backbone": "resnet18", "variant": "v1", "min_size": 224, "max_size": 320},
    "v2": {"backbone": "resnet18", "variant": "v2", "anchor_sizes": (8, 16, 32, 64, 128)},
}


@pytest.fixture(scope="module")
def photos(samples):
    """The session's images as torchvision wants them: float in 0..1."""
    return [(image.float() / 255, target) for image, target in samples]


def count_of(case):
    """How many images: convolutions in float64 take long."""
    return 1 if case == "v1-large" else 2


@pytest.fixture(scope="module")
def live_states(photos):
    """Case -> state dict, built when first asked for."""
    states = {}

    def get(case):
        if case not in states:
            states[case] = oracle.live_state(photos[: count_of(case)], **SMALL | CASES[case])
        return states[case]

    return get


def model_pair(case, state, **options):
    """torchvision's model and ours, with the same weights, in float64."""
    options = SMALL | CASES[case] | options
    with patch.multiple("torch.nn.init", **dict.fromkeys(DRAWN, lambda tensor, *_, **__: tensor)):
        theirs = oracle.build(**options)
        ours = create_model(91, trainable_layers=5, **options)
    for model in (theirs, ours):
        model.load_state_dict(state)
    return theirs.double(), ours.double()


def float64(photos):
    """Images and targets, the targets' boxes too: torchvision scales and encodes boxes in their own type."""
    return [image.double() for image, _ in photos], [t | {"boxes": t["boxes"].double()} for _, t in photos]


def assert_same_detections(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert torch.equal(a["labels"], b["labels"])
        for key in ("boxes", "scores", "masks"):
            assert a[key].shape == b[key].shape
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_detections_equal_torchvision(case, photos, live_states):
    theirs, ours = model_pair(case, live_states(case))
    images, _ = float64(photos[: count_of(case)])
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    assert min(len(e["scores"]) for e in expected) >= 4
    assert len(set().union(*(e["labels"].tolist() for e in expected))) >= 3
    assert_same_detections(found, expected)


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_detections_equal_torchvision_where_some_images_have_none(case, photos, live_states):
    images, _ = float64(photos[:2])
    theirs, ours = model_pair(case, live_states(case))
    theirs, ours = theirs.eval(), ours.eval()
    with torch.no_grad():
        best = [float(e["scores"].max()) for e in theirs(images)]
        for threshold, empty in ((sum(best) / 2, 1), (1.0, 2)):
            theirs.roi_heads.score_thresh = threshold
            ours.roi_heads.config = replace(ours.config, box_score_thresh=threshold)
            expected, found = theirs(images), ours(images)
            assert sum(len(e["scores"]) == 0 for e in expected) == empty
            assert_same_detections(found, expected)


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_losses_and_gradients_equal_torchvision(case, photos, live_states, monkeypatch):
    theirs, ours = model_pair(case, live_states(case))
    oracle.labels_in_float64(oracle.without_chance(theirs))
    monkeypatch.setattr(matching, "draw", oracle.spread_ranks)
    images, targets = float64(photos[:2])
    expected, found = theirs.train()(images, targets), ours.train()(images, targets)
    assert all(positive > 0 for positive, _ in theirs.roi_heads.fg_bg_sampler.sampled)
    assert found.keys() == LOSSES
    for key in LOSSES:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=0)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    parameters = dict(ours.named_parameters())
    assert parameters.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        assert parameters[name].grad is not None, name
        largest = parameter.grad.abs().max().clamp(min=1.0)
        difference = (parameters[name].grad - parameter.grad).abs().max() / largest
        assert difference <= 1e-7, f"{name}: {difference:.1e}"
    for (name, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def tiny(num_classes=5, backbone="resnet18", **config):
    """A small random model with detections: its class scores are spread by a scaled predictor."""
    torch.manual_seed(1)
    larger = {"min_size": 96, "max_size": 128, "anchor_sizes": (8, 16, 32, 64, 96), "mask_head_layers": 2}
    few = {"rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 8}
    whole = {"norm": "batch", "trainable_layers": 5, **larger, **few}
    model = tiny_model.tiny(num_classes, backbone=backbone, **whole | config)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(20)
        model.rpn.head.bbox_pred.weight.mul_(10)
    return model


def noise_image(height=80, width=100, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def target(boxes=(), crowds=(), size=(80, 100), **more):
    """A target whose masks fill their boxes; crowds come last."""
    boxes = torch.tensor([*boxes, *crowds], dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    is_crowd = torch.tensor([i >= len(boxes) - len(crowds) for i in range(len(boxes))], dtype=torch.uint8)
    labels = torch.arange(len(boxes)) % 4 + 1
    return {"boxes": boxes, "labels": labels, "masks": masks, "iscrowd": is_crowd, "image_id": 1} | more


OBJECTS = [(10, 10, 60, 50), (40, 20, 90, 70)]


def assert_whole(losses, model):
    """The five losses are finite and their sum reaches every parameter that trains."""
    assert losses.keys() == LOSSES
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.stride() == parameter.stride(), name  # else DDP copies it, and warns


class TestLosses:
    @pytest.mark.parametrize("variant", ["v1", "v2"])
    @pytest.mark.parametrize(
        "targets",
        [
            [target(OBJECTS), target([(0, 0, 100, 80)])],
            [target(), target()],
            [target(OBJECTS), target()],
            [target(crowds=[(0, 0, 100, 80)]), target(crowds=[(0, 0, 100, 80)])],
            [target(OBJECTS, crowds=[(0, 0, 100, 80)]), target()],
            [target([(5, 5, 6, 6)]), target([(0.5, 0.5, 0.75, 0.75)])],
        ],
        ids=["objects", "nothing", "one-empty", "crowd-only", "objects-in-crowd", "one-pixel"],
    )
    def test_are_defined_and_reach_every_parameter(self, variant, targets):
        model = tiny(variant=variant).train()
        assert_whole(model([noise_image(), noise_image(seed=1)], targets), model)
        assert all(buffer.isfinite().all() for buffer in model.buffers())  # the norms' statistics

    @pytest.mark.parametrize("variant", ["v1", "v2"])
    def test_mixed_precision_is_close_to_float32(self, variant):
        model, targets = tiny(variant=variant).eval(), [target(OBJECTS, sample_seed=3)]
        exact, _ = model([noise_image()], targets)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, detections = model([noise_image()], targets)
            losses = model.train()([noise_image()], targets)
        assert all(rounded[name].item() == pytest.approx(exact[name].item(), rel=0.2, abs=0.05) for name in exact)
        assert detections[0]["boxes"].dtype == detections[0]["masks"].dtype == torch.float32
        assert_whole(losses, model)

    def test_norms_of_the_mask_branch_see_all_rois_at_once(self, monkeypatch):
        losses = []
        for count in (64, 1):
            monkeypatch.setattr(mask_head, "MASKS_AT_ONCE", count)
            model = tiny(variant="v2", norm="batch").train()
            losses.append(model([noise_image()], [target(OBJECTS, sample_seed=3)])["loss_mask"].item())
            assert model.roi_heads.mask_head[0][1].num_batches_tracked == 1
        assert losses[0] == losses[1] > 0

    def test_nothing_to_sample_at_all(self):
        # whole images under a crowd: no anchor and no proposal may serve as a negative
        model = tiny(crowd_ioa_thresh=0.0).train()
        losses = model([noise_image()], [target(crowds=[(0, 0, 100, 80)])])
        assert_whole(losses, model)
        assert sum(losses.values()) == 0

    def test_without_objects_only_background_is_learnt(self):
        losses = tiny().train()([noise_image()], [target()])
        assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
        assert losses["loss_classifier"] > 0 and losses["loss_objectness"] > 0

    def test_frozen_stages_get_no_gradient(self):
        model = tiny(norm=None, trainable_layers=2).train()
        assert_whole(model([noise_image()], [target(OBJECTS)]), model)
        body = model.backbone.body
        assert body.conv1.weight.grad is None and body.layer2[0].conv1.weight.grad is None
        assert body.layer3[0].conv1.weight.grad.any()

    def test_neither_images_nor_targets_change(self):
        image, seen = noise_image(), target(OBJECTS, crowds=[(0, 0, 9, 9)], sample_seed=3)
        before = {k: v.clone() if torch.is_tensor(v) else v for k, v in seen.items()}
        pixels = image.clone()
        tiny().train()([image], [seen])
        assert seen.keys() == before.keys() and torch.equal(image, pixels)
        assert all(torch.equal(v, before[k]) if torch.is_tensor(v) else v == before[k] for k, v in seen.items())

    @pytest.mark.parametrize("form", ["bool", "cropped"])
    def test_forms_of_masks_give_the_same_losses(self, form):
        seen = target(OBJECTS, sample_seed=3)
        masks = seen["masks"].bool() if form == "bool" else CroppedMasks.from_masks(seen["masks"])
        model = tiny().train()
        expected = model([noise_image()], [seen])
        assert expected["loss_mask"] > 0
        found = model([noise_image()], [seen | {"masks": masks}])
        assert all(torch.equal(found[k], expected[k]) for k in LOSSES)

    def test_a_sample_seed_fixes_the_draws_and_nothing_else_does(self, monkeypatch):
        drawn = []

        def spy(labels, *args):
            chosen = original(labels, *args)
            drawn.extend(each.tolist() for each in chosen.index.split(chosen.sizes()))
            return chosen

        original = matching.sample_balanced
        monkeypatch.setattr(matching, "sample_balanced", spy)
        model = tiny(norm="frozen", rpn_batch_size_per_image=16, box_batch_size_per_image=8).train()

        def draws(targets):
            drawn.clear()
            model([noise_image(seed=7)] * len(targets), targets)
            return [[tuple(d) for d in drawn[i :: len(targets)]] for i in range(len(targets))]

        (alone,) = draws([target(OBJECTS, sample_seed=11)])
        torch.manual_seed(99)
        first, second = draws([target(OBJECTS, sample_seed=12), target(OBJECTS, sample_seed=11)])
        assert second == alone != first  # whatever the global state and the place in the batch
        assert draws([target(OBJECTS)]) != draws([target(OBJECTS)])  # without a seed: the global generator


@pytest.mark.parametrize("fp16", [False, True])
def test_masks_a_few_at_a_time_give_the_same_losses_and_gradients(fp16, monkeypatch):
    model = tiny(norm="frozen").double().train()
    inputs, found = ([noise_image().double()], [target(OBJECTS, sample_seed=3)]), []
    # then the gradients wait for the backward pass; torch's own queries can't be replaced, autocast keeps their answers
    monkeypatch.setattr(loss_portions, "in_float16", lambda _: fp16)
    for count in (1000, 1):
        monkeypatch.setattr(mask_head, "MASKS_AT_ONCE", count)
        found_losses = model(*inputs)
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append((*found_losses.values(), *torch.autograd.grad(sum(found_losses.values()), trained)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_masks_a_few_at_a_time_train_in_bfloat16(monkeypatch):
    model = tiny(norm="frozen").train()
    inputs, found = ([noise_image()], [target(OBJECTS, sample_seed=3)]), []
    for count in (1000, 1):
        monkeypatch.setattr(mask_head, "MASKS_AT_ONCE", count)
        with torch.autocast("cpu", torch.bfloat16):
            found_losses = model(*inputs)
        trained = [p for name, p in model.named_parameters() if p.requires_grad and "mask" in name]
        loss = found_losses["loss_mask"]
        found.append((loss, *torch.autograd.grad(loss, trained)))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 0.05 * a.norm()  # a sum's order matters in bfloat16


class TestRecompute:
    @pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
    def test_the_same_gradient_from_fewer_activations(self, backbone):
        model = tiny(norm="frozen", backbone=backbone).train()
        inputs, seen = ([noise_image()], [target(OBJECTS, sample_seed=3)]), []
        for _ in range(2):
            kept = set()  # storages: (address, bytes)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: (kept.add((t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())), t)[1],
                lambda t: t,
            ):
                loss = sum(model(*inputs).values())
            gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
            seen.append((sum(size for _, size in kept), gradients))
            model.recompute_activations()
        assert seen[1][0] < 0.9 * seen[0][0]
        assert all(torch.equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))

    def test_batch_norm_of_a_single_value(self):
        model = tiny(norm="batch", min_size=32, max_size=32).train()
        with pytest.raises(InputError, match="a batch of one image of at most 32x32 pixels has one: choose norm group"):
            model([noise_image()], [target(OBJECTS)])

    def test_batch_norm_would_count_twice(self):
        with pytest.raises(InputError, match="recompute does not go with norm batch"):
            tiny(norm="batch").recompute_activations()


class TestCompile:
    def test_the_compiled_parts_give_the_same(self, monkeypatch):
        # without code generation, which needs a compiler; the graphs are what can go wrong here
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        model = tiny(norm="frozen").train()
        targets = [target(OBJECTS, sample_seed=3)]
        expected = sum(model([noise_image()], targets).values())
        model.compile_parts()
        found = sum(model([noise_image()], targets).values())
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        found.backward()
        assert model.state_dict().keys() == tiny(norm="frozen").state_dict().keys()
        assert len(model.eval()([noise_image()])[0]["scores"])

    def test_no_compiler_is_one_line(self, monkeypatch):
        def fail(*args, **kwargs):
            raise RuntimeError("no compiler\nmore")

        monkeypatch.setattr(torch, "compile", fail)
        with pytest.raises(InputError, match=r"compile: torch.compile does not work here \(no compiler\)"):
            tiny().compile_parts()


class TestCrowds:
    def test_a_crowd_is_neither_learnt_nor_proposed(self, monkeypatch):
        seen = []

        def spy(labels, *args):
            seen.append(labels[0])
            return original(labels, *args)

        original = matching.sample_balanced
        monkeypatch.setattr(matching, "sample_balanced", spy)
        model = tiny().train()
        model([noise_image()], [target(OBJECTS)])
        model([noise_image()], [target(OBJECTS, crowds=[(0, 0, 100, 40)])])
        plain_rpn, plain_roi, rpn, roi = seen
        for plain, crowded in ((plain_rpn, rpn), (plain_roi, roi)):
            assert len(plain) == len(crowded)  # no proposal is made of the crowd's box
            assert torch.equal(plain > 0, crowded > 0)  # positives stay
            ignored = (plain == 0) & (crowded < 0)
            assert ignored.any() and (crowded == 0).any()
            assert torch.equal(crowded[~ignored], plain[~ignored])

    def test_switched_off_it_is_torchvisions_behaviour_without_the_crowd(self):
        model = tiny(norm="frozen", crowd_ioa_thresh=None).train()
        losses = model([noise_image()], [target(OBJECTS, sample_seed=1)])
        crowded = model([noise_image()], [target(OBJECTS, crowds=[(0, 0, 100, 40)], sample_seed=1)])
        assert all(torch.equal(losses[k], crowded[k]) for k in LOSSES)


class TestDropout:
    @pytest.mark.parametrize(("variant", "linear"), [("v1", 2), ("v2", 1)])
    @pytest.mark.parametrize("training", [True, False])
    def test_follows_the_relu_of_each_linear_layer_and_each_mask_convolution(
        self, variant, linear, training, monkeypatch
    ):
        heads = tiny(norm="frozen", variant=variant, dropout=0.3, mask_head_layers=3).roi_heads.train(training)
        seen = []

        def spy(x, p, active):
            assert (x >= 0).all() and (p, active) == (0.3, training)
            seen.append(tuple(x.shape))
            return x

        monkeypatch.setattr(mask_head.F, "dropout", spy)
        heads.box_head(torch.randn(5, 16, 7, 7))
        heads.mask_head(torch.randn(6, 16, 14, 14))
        assert seen == [(5, 32)] * linear + [(6, 16, 14, 14)] * 3

    @pytest.mark.parametrize("variant", ["v1", "v2"])
    def test_works_in_training_alone_on_box_and_mask_heads(self, variant):
        fields = {"norm": "frozen", "variant": variant, "box_score_thresh": 0.0}
        model = tiny(dropout=0.5, **fields)
        seen, image = target(OBJECTS, sample_seed=5), noise_image()
        model.train()
        a, b = model([image], [seen]), model([image], [seen])
        assert a["loss_objectness"] == b["loss_objectness"] and a["loss_rpn_box_reg"] == b["loss_rpn_box_reg"]
        assert all(a[k] != b[k] for k in ("loss_classifier", "loss_mask"))
        torch.manual_seed(4)
        first = model([image], [seen])
        torch.manual_seed(4)
        assert all(torch.equal(v, first[k]) for k, v in model([image], [seen]).items())
        plain = tiny(**fields)
        plain.load_state_dict(model.state_dict())
        expected, found = plain.eval()([image]), model.eval()([image])
        assert len(found[0]["scores"]) and torch.equal(found[0]["scores"], expected[0]["scores"])


class TestDetections:
    @pytest.mark.parametrize(("fixed", "shorter"), [((96, 128), 96), ((128, 128), 128)])
    def test_a_fixed_size_gives_boxes_and_masks_of_the_original(self, fixed, shorter):
        model, other = tiny(fixed_size=fixed).eval(), tiny(min_size=shorter).eval()
        assert model.config.fixed_size == fixed and len(other([noise_image()])[0]["scores"])
        assert_same_detections(model([noise_image()]), other([noise_image()]))  # 80x100: both pad it to `fixed`

    def test_contract(self):
        model = tiny().eval()
        image = noise_image(60, 150)
        with torch.no_grad():
            (found,) = model([image])
            (cropped,) = model([image], paste_masks=False)
        count = len(found["scores"])
        assert 0 < count <= 8 and found.keys() == {"boxes", "labels", "scores", "masks"}
        assert found["boxes"].shape == (count, 4) and found["boxes"].dtype == torch.float32
        assert found["labels"].dtype == torch.int64 and set(found["labels"].tolist()) <= {1, 2, 3, 4}
        assert (found["scores"].diff() <= 0).all() and (found["scores"] > 0.05).all()
        assert found["masks"].shape == (count, 1, 60, 150) and 0 <= found["masks"].min() <= found["masks"].max() <= 1
        x1, y1, x2, y2 = found["boxes"].unbind(1)
        assert (0 <= x1).all() and (x1 < x2).all() and (x2 <= 150.01).all()
        assert (0 <= y1).all() and (y1 < y2).all() and (y2 <= 60.01).all()
        assert cropped.keys() == {"boxes", "labels", "scores", "mask_probs"}
        assert cropped["mask_probs"].shape == (count, 28, 28)
        assert all(torch.equal(cropped[k], found[k]) for k in ("boxes", "labels", "scores"))

    @pytest.mark.parametrize("rows", [[0], [33], [0, 5, 39], list(range(32)), []])
    def test_masks_that_nobody_needs_are_zeros_and_change_no_bit_of_others(self, rows):
        many = {"rpn_post_nms_top_n_test": 80, "box_detections_per_img": 40, "box_score_thresh": 0.0}
        model = tiny_model.tiny(4, backbone_width=16, norm="batch", **many).eval()
        images, seen = [noise_image(), noise_image(64, 64, 1)], []

        def need(found):
            seen.append(found)
            return torch.zeros(len(found["scores"]), dtype=torch.bool).index_fill_(0, torch.tensor(rows).long(), True)

        with torch.no_grad():
            expected = model(images, paste_masks=False)
            found = model(images, paste_masks=False, needs=[need, need])
        for one, whole, told in zip(found, expected, seen, strict=True):
            assert len(one["scores"]) == 40
            assert all(torch.equal(one[key], whole[key]) and torch.equal(told[key], whole[key]) for key in told)
            masks = torch.zeros_like(whole["mask_probs"])
            masks[rows] = whole["mask_probs"][rows]
            assert torch.equal(one["mask_probs"], masks)

    def test_gradients_may_be_on(self):
        model, image = tiny().eval(), noise_image()
        with torch.no_grad():
            (expected,) = model([image])
        (found,) = model([image])
        assert all(torch.equal(found[k], expected[k]) for k in expected)

    @pytest.mark.parametrize("variant", ["v1", "v2"])
    @pytest.mark.parametrize(
        "config", [{"box_score_thresh": 1.0}, {"rpn_score_thresh": 1.0}], ids=["no-detections", "no-proposals"]
    )
    def test_none(self, variant, config):
        with torch.no_grad():
            found = tiny(variant=variant, **config).eval()([noise_image(), noise_image(64, 64)])
            cropped = tiny(variant=variant, **config).eval()([noise_image()], paste_masks=False)
        for d, size in zip(found, ((80, 100), (64, 64)), strict=True):
            assert d["boxes"].shape == (0, 4) and d["masks"].shape == (0, 1, *size)
            assert d["labels"].shape == d["scores"].shape == (0,) and d["labels"].dtype == torch.int64
        assert cropped[0]["mask_probs"].shape == (0, 28, 28)

    def test_no_proposals_in_training(self):
        model = tiny(rpn_score_thresh=1.0).train()
        assert_whole(model([noise_image()], [target(OBJECTS)]), model)  # the objects' own boxes remain
        model.zero_grad()
        assert_whole(model([noise_image()], [target()]), model)

    def test_one_class_and_one_pixel(self):
        with torch.no_grad():
            found = tiny(2).eval()([torch.rand(3, 1, 1), torch.rand(3, 1, 300), torch.rand(3, 200, 2)])
        for d, size in zip(found, ((1, 1), (1, 300), (200, 2)), strict=True):
            assert d["masks"].shape[1:] == (1, *size) and set(d["labels"].tolist()) <= {1}

    def test_batched_equals_single(self, samples):
        model = tiny().eval()
        images = [noise_image(80, 100, seed) for seed in range(3)]
        with torch.no_grad():
            together = model(images)
            for image, found in zip(images, together, strict=True):
                (alone,) = model([image])
                assert found["scores"].numel()
                for key in found:  # but for rounding: convolutions choose their algorithm by the batch size
                    torch.testing.assert_close(found[key], alone[key], rtol=0, atol=1e-4)

    def test_uint8_equals_float(self, samples):
        model = tiny().eval()
        images = [image for image, _ in samples[:2]]
        with torch.no_grad():
            found, expected = model(images), model([image.float() / 255 for image in images])
        for a, b in zip(found, expected, strict=True):
            assert len(a["scores"]) and all(torch.equal(a[k], b[k]) for k in a)

    def test_losses_and_detections_from_one_pass(self):
        model = tiny(box_batch_size_per_image=64).eval()
        images, targets = [noise_image(), noise_image(seed=1)], [target(OBJECTS, sample_seed=1), target(sample_seed=2)]
        with torch.no_grad():
            losses, found = model(images, targets)
            expected = model(images)
        assert losses.keys() == LOSSES and all(torch.isfinite(v) for v in losses.values())
        assert losses["loss_mask"] > 0
        for a, b in zip(found, expected, strict=True):
            assert all(torch.equal(a[k], b[k]) for k in b)

    def test_training_without_targets_is_an_error(self):
        with pytest.raises(ValueError, match="targets"):
            tiny().train()([noise_image()])


class TestConfig:
    def test_defaults_are_torchvisions(self):
        model = oracle.build(91, "resnet50")
        config = MaskRCNNConfig()
        rpn, roi, resize = model.rpn, model.roi_heads, model.transform
        assert (config.min_size, config.max_size) == (resize.min_size, resize.max_size)
        assert (list(config.image_mean), list(config.image_std)) == (resize.image_mean, resize.image_std)
        assert rpn._pre_nms_top_n == {
            "training": config.rpn_pre_nms_top_n_train,
            "testing": config.rpn_pre_nms_top_n_test,
        }
        assert rpn._post_nms_top_n == {
            "training": config.rpn_post_nms_top_n_train,
            "testing": config.rpn_post_nms_top_n_test,
        }
        assert (config.rpn_nms_thresh, config.rpn_score_thresh) == (rpn.nms_thresh, rpn.score_thresh)
        assert (config.rpn_fg_iou_thresh, config.rpn_bg_iou_thresh) == (
            rpn.proposal_matcher.high_threshold,
            rpn.proposal_matcher.low_threshold,
        )
        assert (config.rpn_batch_size_per_image, config.rpn_positive_fraction) == (
            rpn.fg_bg_sampler.batch_size_per_image,
            rpn.fg_bg_sampler.positive_fraction,
        )
        assert (config.box_fg_iou_thresh, config.box_bg_iou_thresh) == (
            roi.proposal_matcher.high_threshold,
            roi.proposal_matcher.low_threshold,
        )
        assert (config.box_batch_size_per_image, config.box_positive_fraction) == (
            roi.fg_bg_sampler.batch_size_per_image,
            roi.fg_bg_sampler.positive_fraction,
        )
        assert config.bbox_reg_weights == roi.box_coder.weights
        assert (config.box_score_thresh, config.box_nms_thresh, config.box_detections_per_img) == (
            roi.score_thresh,
            roi.nms_thresh,
            roi.detections_per_img,
        )

    def test_there_and_back(self):
        config = tiny(variant="v2", anchor_sizes=[4, 8, 16, 32, 64], crowd_ioa_thresh=None).config
        values = json.loads(json.dumps(config.to_dict()))
        assert MaskRCNNConfig.from_dict(values) == config
        assert config.anchor_sizes == (4, 8, 16, 32, 64) and config.min_size == (96,)

    def test_norm_of_the_variant(self):
        assert MaskRCNNConfig(variant="v1").norm == "frozen" and MaskRCNNConfig(variant="v2").norm == "batch"

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"variant": "v3"}, "v3"),
            ({"num_classes": 1}, "background"),
            ({"anchor_sizes": (8, 16)}, "one per level"),
            ({"dropout": 1.0}, "dropout"),
            ({"min_size": 900, "max_size": 800}, "max_size"),
            ({"depth": 3}, "depth"),
            ({"backbone": "vgg"}, "vgg"),
            ({"norm": "layer"}, "layer"),
            ({"trainable_layers": 6}, "trainable_layers"),
            ({"aspect_ratios": ()}, "aspect_ratios"),
            ({"fixed_size": (96, 100)}, r"fixed_size is \(96, 100\): .*multiples of size_divisible, 32"),
            ({"fixed_size": 96}, "a height and a width"),
            ({"fixed_size": [0, 32]}, "fixed_size"),
            ({"fixed_size": ["none", 32]}, r"fixed_size is \('none', 32\)"),
        ],
    )
    def test_what_does_not_fit_is_named(self, config, message):
        with pytest.raises(InputError, match=message) as error:
            create_model(**{"num_classes": 3, "backbone": "resnet18"} | config)
        assert "\n" not in str(error.value)

    def test_sync_norm_on_a_cpu_is_refused(self):
        with pytest.raises(InputError, match="sync"):
            tiny(norm="sync").train()([noise_image()], [target(OBJECTS)])
