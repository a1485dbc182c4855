"""Weights: torchvision's names both ways, older spellings, other class counts, files and their fetching."""

import argparse
import hashlib
import io
import re
from functools import partial

import pytest
import torch
import torchvision
from torchvision.models import detection

from benchmarks import torchvision_model as oracle
from network_files import InputError, create_model, load_weights
from network_files.weight_files import weights
from tests import tiny_model
from tests.small_runs import same
from train_utils.checkpoints.checkpoint import load_checkpoint, model_from_checkpoint

tiny = partial(tiny_model.tiny, mask_head_layers=2)


def shapes(module):
    return {key: value.shape for key, value in module.state_dict().items()}


def other(state):
    """A state of the same keys and shapes, and other values."""
    return {k: torch.rand_like(v) if v.is_floating_point() else v + 3 for k, v in state.items()}


class TestTorchvisionsNames:
    @pytest.mark.parametrize("num_classes", [91, 5])
    def test_keys_and_shapes_of_v1_and_v2(self, num_classes):
        options = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
        with torch.device("meta"):
            v1 = oracle.build(num_classes, "resnet50")
            assert shapes(create_model(num_classes)) == shapes(v1)
            batch_v1 = detection.maskrcnn_resnet50_fpn(**options)
            assert shapes(create_model(num_classes, norm="batch")) == shapes(batch_v1)
            v2 = detection.maskrcnn_resnet50_fpn_v2(**options)
            assert shapes(create_model(num_classes, variant="v2")) == shapes(v2)
            assert shapes(oracle.build(num_classes, "resnet50", "v2")) == shapes(v2)  # the oracle is torchvision's

    @pytest.mark.parametrize("variant", ["v1", "v2"])
    def test_strict_load_both_ways(self, variant):
        theirs = oracle.build(7, "resnet18", variant)
        ours = create_model(7, "resnet18", variant)
        state = other(theirs.state_dict())
        ours.load_state_dict(state, strict=True)
        assert same(ours.state_dict(), state)
        state = other(ours.state_dict())
        theirs.load_state_dict(state, strict=True)
        assert same(theirs.state_dict(), state)

    def test_older_spelling(self):
        model = create_model(4, "resnet18")
        state = other(model.state_dict())
        older = tiny_model.older_names(state)
        assert len(older.keys() - state.keys()) == 2 + 2 * 4 + 2 * 8
        theirs = oracle.build(4, "resnet18")
        theirs.load_state_dict(dict(older))  # torchvision reads it too
        assert same(theirs.state_dict(), state)
        load_weights(model, older)
        assert same(model.state_dict(), state)

    def test_data_parallel_prefix_and_batch_counters(self):
        model = tiny()
        state = other(model.state_dict())
        wrapped = {f"module.{key}": value for key, value in state.items()}
        wrapped["module.backbone.body.bn1.num_batches_tracked"] = torch.tensor(5)
        load_weights(model, wrapped)
        assert same(model.state_dict(), state)


class TestOtherClassCounts:
    def test_is_an_error_that_says_what_to_do(self):
        model = tiny(4)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(InputError, match=r"for 8 classes, not 3.*a model of as many") as error:
            load_weights(model, tiny(9).state_dict())
        assert "\n" not in str(error.value)
        assert same(model.state_dict(), before)  # nothing was half loaded

    @pytest.mark.parametrize("variant", ["v1", "v2"])
    def test_fine_tuning_replaces_the_predictors_alone_and_says_so(self, variant):
        model = tiny(4, variant=variant)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        state = other(tiny(9, variant=variant).state_dict())
        lines = "\n".join(load_weights(model, state, replace_predictors=True))
        for key, value in model.state_dict().items():
            replaced = "cls_score" in key or "box_predictor.bbox_pred" in key or "mask_fcn_logits" in key
            assert torch.equal(value, before[key] if replaced else state[key]), key
            assert (key in lines) == replaced

    def test_the_same_class_count_replaces_nothing(self):
        model = tiny(4)
        state = other(model.state_dict())
        load_weights(model, state, replace_predictors=True)
        assert same(model.state_dict(), state)


class TestCheckpoints:
    def test_averaged_weights_come_first(self):
        model = tiny()
        raw, averaged = other(model.state_dict()), other(model.state_dict())
        load_weights(model, {"model": raw, "ema": averaged, "epoch": 3, "config": {}})
        assert same(model.state_dict(), averaged)
        load_weights(model, {"model": raw, "ema": None, "epoch": 3})
        assert same(model.state_dict(), raw)

    def test_the_epsilon_that_the_weights_were_trained_with_comes_along(self):
        trained = tiny()
        trained.set_frozen_bn_eps(0.0)
        model = tiny()
        load_weights(model, {"model": trained.state_dict(), "config": trained.config.to_dict()})
        assert model.config.frozen_bn_eps == 0.0
        assert all(m.eps == 0.0 for m in model.modules() if type(m).__name__ == "FrozenBatchNorm2d")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("roi_heads.box_head.fc6.weight"), "1 missing.*fc6.weight"),
            (lambda s: s.update(surprise=torch.zeros(1)), "1 keys unknown.*surprise"),
            (lambda s: s.update({"rpn.head.cls_logits.bias": torch.zeros(5)}), "1 shapes differ.*cls_logits.bias"),
            (lambda s: s.clear(), "no weights"),
            (lambda s: s.update(note="text"), "neither a state dict nor a checkpoint"),
        ],
    )
    def test_what_does_not_fit_is_named_and_nothing_is_loaded(self, change, message):
        model = tiny()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        state = other(model.state_dict())
        change(state)
        with pytest.raises(InputError, match=message) as error:
            load_weights(model, state)
        assert "\n" not in str(error.value)
        assert same(model.state_dict(), before)

    def test_another_architecture_is_an_error(self):
        with pytest.raises(InputError, match="check backbone"):
            load_weights(tiny(backbone="resnet34"), tiny().state_dict())
        with pytest.raises(InputError, match="choose norm"):
            load_weights(tiny(norm="group"), tiny().state_dict())
        with pytest.raises(InputError, match="need norm group"):
            load_weights(tiny(), tiny(norm="group").state_dict())


class TestFiles:
    def test_a_path(self, tmp_path):
        model, path = tiny(), tmp_path / "weights.pth"
        state = other(model.state_dict())
        torch.save(state, path)
        assert str(path) in load_weights(model, path)[0]
        assert same(model.state_dict(), state)
        assert load_weights(tiny(), str(path))

    @pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 torn"])
    def test_what_is_no_weights_file_is_named(self, tmp_path, content):
        path = tmp_path / "odd.pth"
        path.write_bytes(content)
        with pytest.raises(InputError, match="odd.pth") as error:
            load_weights(tiny(), path)
        assert "\n" not in str(error.value)

    def test_a_truncated_file_a_tensor_and_a_missing_file_are_named(self, tmp_path):
        path = tmp_path / "odd.pth"
        torch.save(tiny().state_dict(), path)
        path.write_bytes(path.read_bytes()[:100_000])
        for content in (None, torch.zeros(3), {"model": 5}):
            if content is not None:
                torch.save(content, path)
            with pytest.raises(InputError, match="odd.pth"):
                load_weights(tiny(), path)
        with pytest.raises(InputError, match="none.pth"):
            load_weights(tiny(), tmp_path / "none.pth")

    def test_a_backbone_goes_into_the_body(self, tmp_path):
        classifier = torchvision.models.resnet18(weights=None)
        path = tmp_path / "resnet18.pth"
        torch.save(classifier.state_dict(), path)
        model = tiny(backbone_width=64)
        rpn = model.rpn.head.conv[0][0].weight.clone()
        lines = load_weights(model, path)
        assert len(lines) == 1
        body, expected = model.backbone.body.state_dict(), classifier.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in body.items())
        assert torch.equal(model.rpn.head.conv[0][0].weight, rpn)

    def test_a_partial_backbone_says_what_is_missing(self, shared_data):
        model = tiny(backbone_width=64)
        layer4 = model.backbone.body.layer4[0].conv1.weight.clone()
        path = shared_data / "weights" / "resnet18_stem_to_layer3.pth"
        lines = load_weights(model, path)
        assert len(lines) == 2 and "layer4" in lines[1] and "layer3" not in lines[1]
        assert torch.equal(model.backbone.body.layer4[0].conv1.weight, layer4)
        body = model.backbone.body.state_dict()
        assert all(torch.equal(body[k], v) for k, v in torch.load(path, weights_only=True).items() if k in body)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache in a folder of its own; its checkpoints folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def publish(folder, state, name="resnet18", digest=None):
    """Write a weights file as a server holds it, the hash in its name, and return its file:// address."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = digest or hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{digest}.pth"
    path.write_bytes(buffer.getvalue())
    return path.as_uri()


class TestFetching:
    def test_once_and_into_the_cache(self, tmp_path, hub, monkeypatch):
        model = tiny()
        state = other(model.backbone.body.state_dict())
        url = publish(tmp_path / "site", state)
        monkeypatch.setitem(weights.IMAGENET, "resnet18", url)
        load_weights(model, "imagenet")
        assert same(model.backbone.body.state_dict(), state)
        (cached,) = hub.iterdir()
        assert cached.name == url.rsplit("/", 1)[1]
        (tmp_path / "site" / cached.name).unlink()
        load_weights(tiny(), "imagenet")  # now from the cache

    def test_a_wrong_hash_is_an_error_and_leaves_nothing(self, tmp_path, hub, monkeypatch):
        monkeypatch.setitem(weights.IMAGENET, "resnet18", publish(tmp_path / "site", {}, digest="12345678"))
        with pytest.raises(InputError, match="hash"):
            load_weights(tiny(), "imagenet")
        assert list(hub.iterdir()) == []

    def test_a_damaged_file_in_the_cache_is_named(self, tmp_path, hub, monkeypatch):
        monkeypatch.setitem(weights.IMAGENET, "resnet18", publish(tmp_path / "site", {"a": torch.ones(3)}))
        path = weights.fetch(weights.IMAGENET["resnet18"])
        path.write_bytes(path.read_bytes()[:-5] + b"?????")
        with pytest.raises(InputError, match=re.escape(str(path)) + ".*SHA-256"):
            load_weights(tiny(), "imagenet")

    @pytest.mark.parametrize("whole_name", [False, True])
    def test_a_file_of_the_working_folder_is_found(self, tmp_path, hub, monkeypatch, whole_name):
        state, mine = (other(tiny().backbone.body.state_dict()) for _ in range(2))
        url = publish(tmp_path / "site", state)
        monkeypatch.setitem(weights.IMAGENET, "resnet18", url)
        monkeypatch.chdir(tmp_path)
        name = url.rsplit("/", 1)[1] if whole_name else "resnet18.pth"
        (tmp_path / "site" / url.rsplit("/", 1)[1]).rename(name)
        model = tiny()
        (line,) = load_weights(model, "imagenet")
        assert same(model.backbone.body.state_dict(), state) and f"weights: {name} " in line and not hub.exists()
        torch.save(mine, name)
        lines = load_weights(model, "imagenet")
        assert same(model.backbone.body.state_dict(), mine) and "not torchvision's file" in lines[-1]

    @pytest.mark.parametrize(
        "url", ["file:///no/such/folder/resnet18-0a1b2c3d.pth", "http://127.0.0.1:9/resnet18-0a1b2c3d.pth"]
    )
    def test_a_closed_network_names_the_address_and_the_folder(self, hub, monkeypatch, url):
        monkeypatch.setitem(weights.IMAGENET, "resnet18", url)
        with pytest.raises(InputError) as error:
            load_weights(tiny(), "imagenet")
        message = str(error.value)
        assert url in message and str(hub) in message and "weights none" in message and "\n" not in message

    def test_published_v1_weights_set_the_epsilon_to_zero_by_name_or_by_path(self, tmp_path, hub, monkeypatch):
        donor = tiny(91)
        url = publish(tmp_path / "site", donor.state_dict(), "maskrcnn")
        monkeypatch.setitem(weights.COCO, ("resnet18", "v1"), url)
        monkeypatch.setattr(weights, "V1_COCO_HASH", url[-12:-4])
        for source in ("coco", tmp_path / "site" / url.rsplit("/", 1)[1]):
            model = tiny(91)
            load_weights(model, source)
            assert model.config.frozen_bn_eps == 0.0
            fine_tuned = tiny(3)
            load_weights(fine_tuned, source, replace_predictors=True)
            assert fine_tuned.config.frozen_bn_eps == 0.0
        plain = tiny(91)
        load_weights(plain, donor.state_dict())
        assert plain.config.frozen_bn_eps == 1e-5

    def test_what_is_not_published_is_named(self):
        with pytest.raises(InputError, match="resnet18 v1"):
            load_weights(tiny(), "coco")
        with pytest.raises(InputError, match="resnet101"):
            load_weights(tiny(backbone="resnet101", variant="v2"), "coco")

    def test_the_addresses_are_torchvisions(self):
        for name, url in weights.IMAGENET.items():
            assert url in [entry.url for entry in torchvision.models.get_model_weights(name)]
        assert weights.COCO["resnet50", "v1"] == detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
        assert weights.COCO["resnet50", "v2"] == detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url


@pytest.mark.parametrize("content", [{1: torch.zeros(2)}, {"model": torch.zeros(3)}])
def test_dicts_that_are_no_weights(content):
    with pytest.raises(InputError):
        load_weights(tiny(), content)


class TestFilesOfOthers:
    """What torchvision's reference scripts save: weights, training state, and their flags as a Namespace."""

    @staticmethod
    def reference_file(path, prefix="module.", **options):
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
        state = other(model.state_dict())
        torch.save(
            {
                "model": {prefix + key: value for key, value in state.items()},
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": schedule.state_dict(),
                "args": argparse.Namespace(lr=0.1, gpus=[0, 1], name=None),
                "epoch": 3,
            },
            path,
            **options,
        )
        return state

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_serve_as_weights(self, tmp_path, prefix, zipped):
        path = tmp_path / "model_3.pth"
        state = self.reference_file(path, prefix, _use_new_zipfile_serialization=zipped)
        model = tiny()
        load_weights(model, str(path))
        assert same(model.state_dict(), state)
        loaded, names = model_from_checkpoint(path, min_size=64, max_size=96)
        assert same(loaded.state_dict(), state) and names.num_labels == 4

    def test_are_not_to_be_resumed(self, tmp_path):
        self.reference_file(tmp_path / "model_3.pth")
        with pytest.raises(InputError, match=r"holds weights but no training state.*--weights .*model_3\.pth"):
            load_checkpoint(tmp_path / "model_3.pth")

    def test_a_namespace_of_other_things_is_refused(self, tmp_path):
        torch.save({"args": argparse.Namespace(file=tmp_path)}, tmp_path / "a.pth")
        with pytest.raises(InputError, match="names pathlib.*nothing was run"):
            load_weights(tiny(), tmp_path / "a.pth")


class TestWhatDoesNotFit:
    """One line: what the file holds, what is wanted, what to do."""

    @pytest.mark.parametrize(
        "config, message",
        [
            ({"variant": "v2", "norm": "frozen"}, "resnet18 v1 for 3 classes.*this model, resnet18 v2.*variant"),
            ({"backbone": "resnet34"}, "resnet18 v1.*this model, resnet34 v1.*check backbone"),
            ({"fpn_channels": 8}, "16 in the pyramid.*8 in the pyramid"),
            ({"num_classes": 7}, "is for 3 classes, not 6 .*a model of as many"),
        ],
    )
    def test_weights(self, config, message):
        with pytest.raises(InputError, match=message) as error:
            load_weights(tiny(**config), tiny().state_dict())
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "flags, message",
        [
            (
                {"variant": "v2"},
                "the model flags that were given: it holds resnet18 v1.*they ask for resnet18 v2.*leave",
            ),
            ({"backbone": "resnet34"}, "holds resnet18 v1.*they ask for resnet34 v1"),
            ({"mask_head_layers": 10**9}, "1000000000 layers in the heads|layers in the heads"),
            ({"fpn_channels": 10**6, "box_head_channels": 10**6}, "1000000 in the pyramid"),
        ],
    )
    def test_flags(self, tmp_path, flags, message):
        torch.save(tiny().state_dict(), tmp_path / "a.pth")
        with pytest.raises(InputError, match=message) as error:
            model_from_checkpoint(tmp_path / "a.pth", **flags)
        assert "\n" not in str(error.value)
