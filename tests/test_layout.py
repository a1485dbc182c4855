"""Imports go one way: backbone, network_files by layers, train_utils, scripts; declared packages only."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NETWORK_LAYERS = [  # a module imports from the rows above its own
    {"boxes", "roi_align", "losses", "cropped_masks", "plain_pickle", "file_stamp", "recorder"},
    {"nms"},
    {"config", "instance_masks", "anchors", "matching", "architecture"},
    {"transform"},
    {"rpn", "roi_heads"},
    {"mask_rcnn", "torch_file"},
    {"weights"},
    {"__init__"},
]
SCRIPTS = {"train", "train_multi_GPU", "validation", "predict"}
DEVELOPMENT = {"tests", "benchmarks", "tools"}  # they import the rest; nothing imports them
DATA_MODULES = {*(f"my_dataset_{name}" for name in ("coco", "voc", "npy", "packed", "shapes")), "transforms"}
PROJECT = {"backbone", "network_files", "train_utils"} | DATA_MODULES | SCRIPTS | DEVELOPMENT
RUN_TIME_PACKAGES = {"torch", "numpy", "pycocotools", "PIL", "lxml", "tqdm", "tensorboard", "matplotlib"}
LATE_PACKAGES = {"matplotlib", "tensorboard"}  # slow to import, so imported where they are used
MAY_USE_NUMPY = {"network_files.instance_masks"}  # for the RLE alone


def imports_of(source: str, module: str) -> list[tuple[str, bool]]:
    """(absolute dotted name, whether at module level) for each import in `source`, the text of `module`."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    package = module.rsplit(".", 1)[0] if "." in module else ""
    found = []
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).strip(".")
            # `from package import name` may mean a submodule: name it in full, so that its layer is seen
            found += [(f"{base}.{alias.name}", top) for alias in node.names]
    return found


def network_layer(name: str) -> int | None:
    """The layer of dotted name `name` within network_files; the package itself is the topmost."""
    parts = name.split(".")
    for i, layer in enumerate(NETWORK_LAYERS):
        if len(parts) > 1 and parts[1] in layer:
            return i
    return None


def violations(source: str, module: str) -> list[str]:
    """One line for each import of `module` that goes against the layout."""
    home = module.split(".")[0]
    bad = []
    for name, top in imports_of(source, module):
        root = name.split(".")[0]
        reason = None
        if root in sys.stdlib_module_names:
            continue
        if root in PROJECT:
            reason = _project_violation(module, home, name, root)
        elif root not in RUN_TIME_PACKAGES:
            reason = "is no run-time requirement"
        elif home == "backbone" or home == "network_files":
            allowed = {"torch"} | ({"numpy", "pycocotools"} if module in MAY_USE_NUMPY else set())
            reason = None if root in allowed else "has no place in the network"
        if reason is None and root in LATE_PACKAGES and top:
            reason = "is to be imported where it is used"
        if reason:
            bad.append(f"{module} imports {name}, which {reason}")
    return bad


def _project_violation(module: str, home: str, name: str, root: str) -> str | None:
    if root in DEVELOPMENT or root in SCRIPTS:
        return "nothing at run time imports"
    if home == "backbone" and root != "backbone":
        return "comes after backbone"
    if home != "network_files":
        return None
    if root not in ("backbone", "network_files"):
        return "comes after network_files"
    mine = network_layer(module)
    if root == "backbone":
        is_operator = mine is not None and mine < network_layer("network_files.config")
        return "is more than torch" if is_operator else None
    theirs = network_layer(name)
    if theirs is None or mine is None:
        return "has no layer in tests/test_layout.py"
    return None if theirs < mine else "is not in a lower layer"


def run_time_files() -> list[Path]:
    folders = [ROOT / name for name in ("backbone", "network_files", "train_utils")]
    return sorted([*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", run_time_files(), ids=module_name)
def test_imports_go_one_way(path):
    assert violations(path.read_text(), module_name(path)) == []


def test_every_network_module_has_a_layer():
    modules = {path.stem for path in (ROOT / "network_files").glob("*.py")}
    assert modules == set().union(*NETWORK_LAYERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backbone.resnet", "import numpy"),
        ("backbone.resnet", "from network_files import boxes"),
        ("network_files.boxes", "from .nms import nms"),
        ("network_files.matching", "from .transform import Objects"),
        ("network_files.nms", "from backbone.errors import InputError"),
        ("network_files.rpn", "def f():\n    from .roi_heads import RoIHeads"),
        ("network_files.rpn", "from . import mask_rcnn"),
        ("network_files.rpn", "from network_files import create_model"),
        ("network_files.transform", "import PIL.Image"),
        ("network_files.weights", "from train_utils import checkpoint"),
        ("train_utils.engine", "import torchvision"),
        ("train_utils.engine", "from validation import main"),
        ("train_utils.drawing", "import matplotlib.pyplot as plt"),
        ("predict", "from tools import anything"),
    ],
)
def test_a_wrong_import_is_seen(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backbone.resnet", "import math\nfrom torch import nn\nfrom .norm import FrozenBatchNorm2d"),
        ("network_files.instance_masks", "from pycocotools import mask\nfrom .boxes import box_iou"),
        ("network_files.rpn", "from . import matching, nms\nfrom backbone.errors import InputError"),
        ("train_utils.drawing", "def f():\n    import matplotlib.pyplot as plt"),
        ("predict", "from network_files import create_model\nfrom train_utils import checkpoint"),
    ],
)
def test_a_right_import_passes(module, source):
    assert violations(source, module) == []
