"""No file of the project may run what a file of a user's says, nor unpack archives: a lint by ast, with its exceptions.

The project opens no zip, tar or other archive for its content: data sets are folders, a checkpoint's zip is read
by torch. So there is no path that an archive's entry could take out of its folder, and `extract` stays forbidden.
"""

import ast
from pathlib import Path

import pytest

from tests.small_runs import ROOT

NAMES = {"eval", "exec", "compile", "__import__"}  # builtins
MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib"}  # not to be imported at all
CALLS = {  # last part of a dotted call -> the modules it is forbidden of (none: of any)
    "loads": {"pickle", "marshal", "dill", "yaml"},
    "Unpickler": {"pickle"},
    "load": {"pickle", "marshal", "yaml", "joblib"},
    "system": {"os"},
    "popen": {"os"},
    "getoutput": {"subprocess"},
    "unpack_archive": set(),
    "extractall": set(),
    "extract": set(),
}
ALLOWED = {  # file -> what it may do, and why
    "train_utils/data/loaders.py": {"pickle.loads"},  # bytes of the run's own worker processes
    "tests/test_faults.py": {"os.system", "exec", "pickle.loads"},  # to see that an audit hook sees them
    "tests/test_annotation_cache.py": {"pickle.loads"},  # round trips of the test's own objects
    "tests/test_dataset_coco.py": {"pickle.loads"},
    "tests/test_formats.py": {"pickle.loads"},
    "tests/test_packed.py": {"pickle.loads"},
    "tests/test_tiles.py": {"pickle.loads"},
    "tests/test_windows.py": {"pickle.loads"},
    "tests/test_python_results.py": {"pickle.loads"},
    "tests/test_python_training.py": {"exec"},  # lines of the project's own pages
    "tests/test_stand_in.py": {"pickle.loads"},
}


def project_files() -> list[Path]:
    files = ROOT.rglob("*.py")
    return sorted(path for path in files if not any(part.startswith((".", "venv")) for part in path.parts[1:]))


def dotted(node) -> str:
    """`a.b.c` of a name or attribute; "?" stands for the result of a call and the like in front."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def forbidden(source: str) -> list[str]:
    """What is forbidden in a module's text: "name of the call" or "name(keyword=value)" each."""
    found, aliases, nodes = [], {}, list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                whole = f"{module}.{alias.name}" if module else alias.name
                aliases[alias.asname or alias.name] = whole
                if whole.split(".")[0] in MODULES:
                    found.append(f"import {whole}")
    for node in nodes:
        if isinstance(node, ast.Call):
            found += _of_call(node, aliases)
        elif isinstance(node, ast.ClassDef):  # a class of one's own derived from it
            found += [_full(dotted(b), aliases) for b in node.bases if dotted(b).endswith("Unpickler")]
    return found


def _full(name: str, aliases: dict) -> str:
    first, dot, rest = name.partition(".")
    return aliases.get(first, first) + dot + rest


def _of_call(node: ast.Call, aliases: dict) -> list[str]:
    name = _full(dotted(node.func), aliases)
    module, _, last = name.rpartition(".")
    found = [name] if name in NAMES else []
    if last in CALLS and (not CALLS[last] or module in CALLS[last]):
        found.append(name)
    keywords = {k.arg: k.value for k in node.keywords}
    for keyword in ("allow_pickle", "shell"):
        if keyword in keywords and not _is(keywords[keyword], False):
            found.append(f"{name}({keyword}=True)")
    if name == "torch.load" and not _is(keywords.get("weights_only"), True):
        found.append("torch.load without weights_only=True")
    elif "weights_only" in keywords and not _is(keywords["weights_only"], True):
        found.append(f"{name}(weights_only=False)")
    return found


def _is(node, value) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_does_what_is_forbidden_and_what_is_allowed_is_still_done():
    found = {path.relative_to(ROOT).as_posix(): forbidden(path.read_text(encoding="utf-8")) for path in project_files()}
    done = {(name, what) for name, all_of_it in found.items() for what in all_of_it}
    allowed = {(name, what) for name, whats in ALLOWED.items() for what in whats}
    assert len(found) > 200 and done - allowed == set() == allowed - done


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pickle\npickle.load(f)",
        "from pickle import loads\nloads(f)",
        "import pickle as p\np.Unpickler(f).load()",
        "import pickle\nclass U(pickle.Unpickler): pass",
        "import yaml\nyaml.load(f)",
        "eval('1')",
        "exec('1')",
        "import os\nos.system('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import zipfile\nzipfile.ZipFile(f).extractall()",
        "import tarfile\ntarfile.open(f).extract('x')",
        "import shutil\nshutil.unpack_archive('x')",
        "import marshal",
        "from shelve import open",
    ],
)
def test_each_is_seen(source):
    assert len(forbidden(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x', weights_only=True)",
        "model.eval()\npattern.exec()",
        "import json\njson.load(f)\njson.loads(s)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import subprocess\nsubprocess.run(['x'], shell=False)",
        "import pickle\npickle.dumps(1)",
        "re.compile('x')",
    ],
)
def test_what_is_harmless_passes(source):
    assert forbidden(source) == []
