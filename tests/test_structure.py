"""The counts of tests/structure.py on small sources, and that its figures can be taken of this checkout."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests import structure

SOURCE = '''"""Two lines
of a docstring."""

import os  # one

# a comment
TEXT = """three
lines, # of which

this is the fourth"""


class Thing:
    """A docstring."""

    def method(self):
        """Another."""
        return os.path.join(
            "a",  # inside a call

        )

    async def other(self):
        """Another."""
        "no docstring"
'''


def write(folder: Path, files: dict[str, str]) -> Path:
    """A project of {path: source} in folder."""
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    return folder


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", 0),
        ("# comment\n\n", 0),
        ('"""Docstring."""\n', 0),
        ('"""Docstring."""\n"an expression"\n', 1),
        ('x = """a\n\nb"""\n', 3),
        ("x = (\n    1,\n\n    # comment\n)\n", 3),
        ("def f():\n    # comment\n    return 1\n", 2),
        ('async def f():\n    """Doc\n\n    string."""\n    return 1\n', 2),
        ("x = 1; y = 2\n", 1),
        (SOURCE, 12),
    ],
)
def test_code_lines(source: str, lines: int) -> None:
    assert structure.code_lines(source) == lines


@pytest.mark.parametrize(
    ("source", "parameters", "typed"),
    [
        ("def f(): ...", 0, False),
        ("def f() -> None: ...", 0, True),
        ("def f(a) -> None: ...", 1, False),
        ("def f(a: int): ...", 1, False),
        ("def f(a: int, /, b: int = 1, *c: int, d: int, **e: int) -> None: ...", 5, True),
        ("def f(a: int, *b, **c: int) -> None: ...", 3, False),
        ("def f(a: int, **b) -> None: ...", 2, False),
        ("def f(*, a) -> None: ...", 1, False),
        ("def f(a, /) -> None: ...", 1, False),
        ("async def f(a) -> None: ...", 1, False),
        ("class A:\n    def f(self, a: int) -> None: ...", 1, True),
        ("class A:\n    def f(cls, a) -> None: ...", 1, False),
        ("class A:\n    def __init__(self): ...", 0, False),
    ],
)
def test_functions(source: str, parameters: int, typed: bool) -> None:
    ((_, *found),) = structure.functions(source)
    assert found == [parameters, typed]


def test_nested_functions_are_counted_and_lambdas_are_not() -> None:
    source = "def f() -> None:\n    g = lambda a: a\n    def h(a): ...\n"
    assert structure.functions(source) == [("1 f", 0, True), ("3 h", 1, False)]


def test_product_and_tests_are_told_apart(tmp_path: Path) -> None:
    names = ["a.py", "p/b.py", "p/tests/c.py", "tests/d.py", "tests/e/f.py", "docs/g.py", "findings/h.py"]
    names += [".venv/i.py", "venv3/j.py", "p/.k/l.py", "p/m.txt"]
    root = write(tmp_path / "venv", dict.fromkeys(names, ""))  # what lies above the project does not count
    found = [[p.relative_to(root).as_posix() for p in structure.python_files(root, tests)] for tests in (False, True)]
    assert found == [["a.py", "p/b.py", "p/tests/c.py"], ["tests/d.py", "tests/e/f.py"]]


def test_folders_are_counted_flat() -> None:
    names = ["a.py", "p/__init__.py", "p/b.py", "p/c.py", "p/q/__init__.py", "p/q/d.py", "p/q/e.py", "p/q/f.py"]
    assert structure.folder_counts(names) == [("p/q", 3), ("p", 2), (".", 1)]


def test_files_run_are_those_of_functions_that_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "def f():\n    import fig_late, fig_tool, fig_test\n    from fig_two import g\n"
    one += "    fig_tool.h(), fig_test.h()\n    return list(g())\n"
    two = "import fig_three\ndef g():\n    yield fig_three.h.__name__\n"
    sources = {"fig_one.py": one, "p/fig_two.py": two, "fig_three.py": "def h(): ...\n"}
    sources |= {"fig_late.py": "class A:\n    x = 1\n"}
    sources |= dict.fromkeys(["benchmarks/fig_tool.py", "tests/fig_test.py"], "def h(): ...\n")
    root = write(tmp_path, sources)
    for folder in (".", "p", "benchmarks", "tests"):
        monkeypatch.syspath_prepend(str(root / folder))
    function = importlib.import_module("fig_one").f
    assert structure.files_run(function, root) == ["fig_one.py", "p/fig_two.py"]
    assert sys.getprofile() is None


def test_modules_imported_are_those_of_the_project_at_module_level(tmp_path: Path) -> None:
    one = "import json\nimport p.b\ndef f():\n    import late\nprint('noise')\n"
    names = {"one.py": one, "p/__init__.py": "", "p/b.py": "from tests import t\n", "p/c.py": "", "late.py": ""}
    root = write(tmp_path, names | {"tests/__init__.py": "", "tests/t.py": ""})
    found = structure.modules_imported(["one", "late"], root, first="json")
    assert found == [["one.py", "p/__init__.py", "p/b.py"], ["late.py"]]


@pytest.mark.slow
def test_the_figures_of_this_checkout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["structure.py", "--json", "--files"])
    structure.main()
    found = json.loads(capsys.readouterr().out)
    assert {"backbone/resnet.py", "transforms.py"} <= set(found["files of a training step"][1])
    assert "backbone/resnet.py" in found["files of an evaluation"][1]
    assert "validation.py" in found["modules that validation imports"][1]
    for what, (value, names) in found.items():
        counts = [int(name.split()[-1]) for name in names] if what.startswith(("largest", "code")) else [1] * len(names)
        assert value == (max(counts) if what.startswith("largest") else sum(counts)), what


def test_shapes_stand_in_for_data_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_DATA", str(tmp_path))
    train, val, _ = structure.open_data(tmp_path)
    assert (len(train), len(val)) == (4, 2)
