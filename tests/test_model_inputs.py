"""What is given to a model in Python: taken as it is meant, or refused with a ValueError that says what is wrong."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from network_files.anchors import AnchorGrid
from tests.tiny_model import tiny, tiny_model

SIZE, SIDES = (64, 64), [(64, 96), (96, 64), (64, 64), (80, 90)]
BOX = torch.tensor([[5.0, 5, 30, 40]])
GOOD = {"boxes": BOX, "labels": torch.tensor([1]), "masks": torch.ones(1, *SIZE, dtype=torch.uint8), "sample_seed": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"boxes": torch.rand(4)}, r"boxes has shape \[4\]"),
        ({"boxes": torch.rand(1, 5)}, r"boxes has shape \[1, 5\]"),
        ({"labels": torch.tensor([1, 2])}, r"labels is torch.int64 \[2\]"),
        ({"labels": torch.tensor([1.0])}, "labels is torch.float32"),
        ({"labels": torch.tensor([0])}, "label 0: it must be 1 to 3"),
        ({"labels": torch.tensor([-1])}, "label -1"),
        ({"labels": torch.tensor([9])}, "label 9"),
        ({"masks": GOOD["masks"][:, None]}, r"masks has shape \[1, 1, 64, 64\]: it must be \[1, 64, 64\]"),
        ({"masks": GOOD["masks"][:, :40]}, r"masks has shape \[1, 40, 64\]"),
        ({"masks": GOOD["masks"].repeat(2, 1, 1)}, r"masks has shape \[2, 64, 64\]"),
        ({"iscrowd": torch.tensor([0, 1])}, r"iscrowd has shape \[2\]"),
        ({"boxes": BOX + 1e7}, "far outside of 64x64"),
        ({"boxes": BOX + 500}, "far outside of 64x64"),
        ({"boxes": torch.tensor([[0.0, 0, 1e30, 1e30]])}, "far outside"),
        ({"boxes": BOX / 64}, "its boxes lie within one pixel"),
    ],
)
def test_a_target_that_does_not_fit_is_a_value_error(model, changed, said):
    with pytest.raises(ValueError, match=f"image .*{said}"):
        model([torch.rand(3, *SIZE)], [GOOD | changed])


def test_other_counts_and_kinds_are_a_value_error(model):
    image = torch.rand(3, *SIZE)
    for images, targets, said in (
        ([], None, "no images"),
        (image, None, r"images is one tensor \[3, 64, 64\]: give a list"),
        ([image.numpy()], None, r"image 0 is a ndarray: it must be a tensor"),
        ([image * 255], None, r"image 0 has float values from .* to .*: divide it by 255"),
        ([image - 3], None, r"image 0 has float values from .*: it must be in 0..1"),
        ([image * float("nan")], None, "from nan to nan"),
        ([image], [GOOD, GOOD], "as many targets as images are needed: 2, not 1"),
        ([image], [{"boxes": BOX, "labels": GOOD["labels"]}], "no masks"),
        ([image > 0.5], None, "image 0 is torch.bool"),
        ([(image * 9).to(torch.int16)], None, "image 0 is torch.int16"),
    ):
        with pytest.raises(ValueError, match=said):
            model(images, targets)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="torch.autocast"):
            copy.deepcopy(model).to(dtype)([image])


def test_sixteen_bits_are_the_same_image(model):
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,), (found,) = model([image]), model([(image.int() * 257).to(torch.uint16)])
    assert torch.allclose(found["scores"], expected["scores"], atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_an_image_has_a_gradient(model, training):
    image = torch.rand(3, *SIZE, requires_grad=True)
    own = copy.deepcopy(model).train(training)
    loss = sum(own([image], [GOOD]).values()) if training else own([image])[0]["scores"].sum()
    loss.backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


def test_a_model_that_was_built_without_memory_is_the_same(model):
    with torch.device("meta"):
        empty = tiny(4, backbone_width=16, norm="batch", rpn_post_nms_top_n_test=20, box_detections_per_img=40)
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    image = torch.rand(3, *SIZE)
    with torch.no_grad():
        (expected,), (found,) = model([image]), empty.eval()([image])
    assert all(torch.equal(found[key], value) for key, value in expected.items())


class Anchors(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.grid = AnchorGrid((8,), (1.0,))

    def forward(self, images):
        return self.grid([images[:, :, ::4, ::4]], (64, 96))[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tracer", [torch.export.export, torch.jit.trace])
def test_a_trace_leaves_nothing_and_takes_nothing(tracer, monkeypatch):
    """What the grid has kept of the images before is no part of a trace, and what a trace makes is not kept."""
    own, images, made, level = Anchors(), torch.rand(1, 3, 64, 96), [], AnchorGrid._level
    expected, before = own(images), own.grid._kept
    monkeypatch.setattr(AnchorGrid, "_level", staticmethod(lambda *args: made.append(args) or level(*args)))
    traced = tracer(own, (images,))
    assert made and own.grid._kept is before
    traced = traced.module() if hasattr(traced, "module") else traced
    assert torch.equal(traced(images), expected) and torch.equal(own(images), expected)


def test_one_model_serves_many_threads():
    """Threads that take turns as often as Python lets them, with images of their own sizes: the results of one."""
    model = tiny_model(width=8)
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(SIDES)]

    @torch.no_grad()
    def detect(image):
        return model([image])[0]

    expected, interval = list(map(detect, images)), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(images)) as pool:
            found = list(pool.map(detect, images * 3))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(found, expected * 3, strict=True):
        assert all(torch.equal(one[key], value) for key, value in other.items())


def test_anchors_of_many_threads():
    """The one thing that a model keeps between two calls."""
    shapes = [(2 + i, 9 - i) for i in range(4)]
    grid, interval, wrong = AnchorGrid((8,), (1.0,)), sys.getswitchinterval(), []

    def ask(number):
        for shape in [shapes[number], shapes[number - 1]] * 40:
            found = grid([torch.zeros(1, 1, *shape)], (shape[0] * 4, shape[1] * 4))[0]
            if len(found) != shape[0] * shape[1] or found[-1, 2].item() != (shape[1] - 1) * 4 + 4:
                wrong.append(shape)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_threads_get_their_own_anchors():
    """One thread is held as it keeps its anchors, while another one asks for other ones."""
    reached, done, found = threading.Event(), threading.Event(), {}

    class Held(AnchorGrid):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if threading.current_thread().name == "wide" and not done.is_set():
                reached.set()
                done.wait(5)

    maps = {"wide": (torch.zeros(1, 1, 2, 3), (64, 96)), "high": (torch.zeros(1, 1, 3, 2), (96, 64))}
    grid = Held((8,), (1.0,))

    def ask(name):
        found[name] = grid([maps[name][0]], maps[name][1])[0]

    first = threading.Thread(target=ask, args=("wide",), name="wide")
    first.start()
    reached.wait(5)
    ask("high")
    done.set()
    first.join()
    ask_again = grid([maps["wide"][0]], maps["wide"][1])[0]
    expected = {name: AnchorGrid((8,), (1.0,))([one], size)[0] for name, (one, size) in maps.items()}
    assert all(torch.equal(found[name], expected[name]) for name in maps)
    assert torch.equal(ask_again, expected["wide"])
