"""Imports go one way: backbone, network_files and train_utils by layers, scripts, tools; declared packages only."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.small_runs import ROOT

NETWORK_LAYERS = [  # a module imports from the rows above its own
    {"operators.padded", "operators.cropped_masks", "losses", "loss_portions", "recorder"},
    {"operators.boxes", "operators.sparse_rows"},
    {"weight_files.plain_pickle", "weight_files.file_stamp", "weight_files.safetensors"},
    {"operators.nms", "operators.roi_align"},
    {"config", "operators.instance_masks", "anchors", "matching", "weight_files.architecture"},
    {"shared", "heads.box_head"},
    {"transform", "sampled_rpn_head", "heads.mask_head"},
    {"heads.sampling", "heads.detections"},
    {"rpn", "roi_heads"},
    {"mask_rcnn", "weight_files.torch_file"},
    {"weight_files.weights"},
    {"__init__"},
]
# The packages of train_utils, each of which imports from those before it.
SHARED_LAYERS = [
    "io", "processes", "data", "show", "evaluation", "logs", "checkpoints", "cli", "run", "prediction"
]  # fmt: skip
SCRIPTS = {"train", "train_multi_GPU", "validation", "predict", "maskrcnn"}  # maskrcnn: the face in Python
DEVELOPMENT = {"tests", "benchmarks", "tools"}  # they import the rest; nothing imports them
DATA_SETS = {"my_dataset_coco", "my_dataset_voc"}  # the two classes that people open by name: thin
PROJECT = {"backbone", "network_files", "train_utils", "transforms"} | DATA_SETS | SCRIPTS | DEVELOPMENT
RUN_TIME_PACKAGES = {"torch", "numpy", "pycocotools", "PIL", "lxml", "tqdm", "tensorboard", "matplotlib"}
LATE_PACKAGES = {"matplotlib", "tensorboard"}  # slow to import, so imported where they are used
MAY_USE_NUMPY = {"network_files.operators.instance_masks"}  # for the RLE alone
MOST_MODULES = 12  # in one folder, beside each other


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
    inner = name.split(".", 1)[1] if "." in name else ""
    for i, layer in enumerate(NETWORK_LAYERS):
        if any(inner == module or inner.startswith(f"{module}.") for module in layer):
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
        if reason is None and root in PROJECT and not top:
            reason = "is to be imported at the top of the module"
        if reason:
            bad.append(f"{module} imports {name}, which {reason}")
    return bad


def _project_violation(module: str, home: str, name: str, root: str) -> str | None:
    if root in DEVELOPMENT or root in SCRIPTS:
        return "nothing at run time imports"
    if home == "backbone" and root != "backbone":
        return "comes after backbone"
    if home == "network_files":
        return _network_violation(module, name, root)
    if home in {"train_utils", "transforms"} and root in DATA_SETS:
        return "stands above train_utils"
    if home == root == "train_utils":
        mine, theirs = (SHARED_LAYERS.index(dotted.split(".")[1]) for dotted in (module, name))
        return "is in a later package" if theirs > mine else None
    return None


def _network_violation(module: str, name: str, root: str) -> str | None:
    if root not in ("backbone", "network_files"):
        return "comes after network_files"
    mine = network_layer(module)
    if root == "backbone":
        is_operator = mine is not None and mine < network_layer("network_files.config")
        is_operator = is_operator and not name.startswith("backbone.tracing")  # torch only, as operators are
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


def test_imports_go_one_way():
    assert [bad for path in run_time_files() for bad in violations(path.read_text(), module_name(path))] == []


def test_no_folder_holds_more_modules_than_can_be_taken_in():
    files = [
        path for path in [*ROOT.rglob("*.py")] if path.relative_to(ROOT).parts[0] not in ("tests", "venv", ".venv")
    ]
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in files if path.stem != "__init__")
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_every_network_module_has_a_layer():
    modules = {module_name(path).split(".", 1)[1] for path in (ROOT / "network_files").rglob("*.py")}
    packages = {f"{package}.__init__" for package in ("operators", "heads", "weight_files")}
    assert modules - packages == set().union(*NETWORK_LAYERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backbone.resnet", "import numpy"),
        ("backbone.resnet", "from network_files import anchors"),
        ("network_files.operators.boxes", "from .nms import nms"),
        ("network_files.matching", "from .transform import Objects"),
        ("network_files.operators.nms", "from backbone.errors import InputError"),
        ("network_files.rpn", "def f():\n    from .roi_heads import RoIHeads"),
        ("network_files.rpn", "from . import mask_rcnn"),
        ("network_files.rpn", "from network_files import create_model"),
        ("network_files.transform", "import PIL.Image"),
        ("network_files.weight_files.weights", "from train_utils.checkpoints import checkpoint"),
        ("train_utils.run.step", "import torchvision"),
        ("train_utils.run.step", "from validation import main"),
        ("train_utils.data.opening", "from my_dataset_coco import CocoDataset"),
        ("train_utils.data.opening", "from train_utils.cli import command"),
        ("train_utils.cli.command", "from train_utils.run.loop import run"),
        ("train_utils.run.loop", "def f():\n    from train_utils.io import files"),
        ("train_utils.show.drawing", "import matplotlib.pyplot as plt"),
        ("predict", "from tools import anything"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backbone.resnet", "import math\nfrom torch import nn\nfrom .norm import FrozenBatchNorm2d"),
        ("network_files.operators.instance_masks", "from pycocotools import mask\nfrom .boxes import box_iou"),
        ("network_files.rpn", "from . import matching\nfrom backbone.errors import InputError"),
        ("train_utils.show.drawing", "def f():\n    import matplotlib.pyplot as plt"),
        ("train_utils.run.loop", "from train_utils.cli import command\nfrom train_utils.run import step"),
        ("predict", "from network_files import create_model\nfrom train_utils.checkpoints import checkpoint"),
    ],
)
def test_a_right_import_passes(module: str, source: str):
    assert violations(source, module) == []
