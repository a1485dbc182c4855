"""A function's docstring begins with what it does, in the third person: "Returns the ...", "Reads the ...".

Presence and shape of docstrings are checked by ruff (pyproject.toml), which has no rule for this.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("backbone", "network_files", "train_utils", "tools", "benchmarks")


def offenders(source: str) -> list[str]:
    """Functions whose docstring does not begin with a verb that ends in s; a property may be named by a noun."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if text and not is_property and not text.split()[0].rstrip(",:;.").endswith("s"):
                found.append(f"{node.lineno} {node.name}: {text.splitlines()[0]}")
    return found


def test_every_docstring_begins_with_a_verb():
    files = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    assert [f"{path.relative_to(ROOT)}:{line}" for path in files for line in offenders(path.read_text())] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('def f():\n    """Returns one."""', 0),
        ('def f():\n    """Return one."""', 1),
        ('class A:\n    """A thing."""\n    def f(self):\n        """The thing\'s name."""', 1),
        ('class A:\n    @property\n    def f(self):\n        """The thing\'s name."""', 0),
        ("def f():\n    return 1", 0),
    ],
)
def test_what_is_seen(source, count):
    assert len(offenders(source)) == count
