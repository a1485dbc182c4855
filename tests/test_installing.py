"""What `pip install .` takes along, and the console command: of the files as they stand; nothing is built here."""

import importlib
import re
import sys
from unittest.mock import patch

import pytest

import maskrcnn
from tests.small_runs import ROOT
from train_utils.cli import console
from train_utils.cli.parser import Parser

TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def names_in(entry):
    """The words of a list in pyproject.toml; tomllib is newer than the oldest Python here."""
    return re.findall(r'"([^"]+)"', re.search(rf"^{re.escape(entry)} = \[(.*?)\]$", TEXT, re.S | re.M)[1])


def requirements(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.partition("#")[0].strip() for line in lines if not line.startswith("-r")]


@pytest.mark.parametrize(
    ("entry", "file"), [("dependencies", ""), ("fast", "-fast"), ("video", "-video"), ("export", "-export")]
)
def test_requirements_are_said_once_for_both(entry, file):
    assert names_in(entry) == requirements(f"requirements{file}.txt")


def test_the_oldest_versions_are_the_lower_bounds():
    """What .ci/run installs beside the newest is what requirements.txt allows at least."""

    def bounds(name, sign):
        pairs = (line.partition("#")[0].strip().split(sign) for line in requirements(name) if sign in line)
        return {package: re.sub(r"(\.0)+$", "", version) for package, version in pairs}

    oldest = bounds("tests/requirements-oldest.txt", "==")
    allowed = bounds("requirements.txt", ">=")
    assert {name: oldest.get(name) for name in allowed} == allowed
    tools = bounds("requirements-dev.txt", ">=")
    assert all(tools[name] == version for name, version in oldest.items() if name in tools)
    assert "tests/requirements-oldest.txt" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_module_and_data_file_is_installed():
    assert sorted(names_in("py-modules")) == sorted(path.stem for path in ROOT.glob("*.py"))
    packages = [pattern.removesuffix("*") for pattern in names_in("include")]
    here = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(packages) == here - {"tests", "benchmarks"}
    patterns = [pattern.lstrip("*") for pattern in names_in('"*"')]
    for package in packages:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert all((folder / "__init__.py").exists() for folder in folders), "else setuptools does not find it"
        others = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        assert all(path.name.endswith(tuple(patterns)) and path.parent in folders for path in others)
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in contributing for name in (*packages, *names_in("py-modules")))


def test_one_version(capsys):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {maskrcnn.__version__}\n" in citation and f"## {maskrcnn.__version__}" in changelog
    with pytest.raises(SystemExit) as stop:
        Parser().parse_args(["--version"])
    assert stop.value.code == 0 and run("--version") == 0
    assert capsys.readouterr().out == f"maskrcnn {maskrcnn.__version__}\n" * 2


def run(*words):
    with patch.object(sys, "argv", ["maskrcnn", *words]):
        return console.main()


def test_the_console_command_runs_the_scripts(capsys):
    assert all(callable(importlib.import_module(name).main) for name in console.COMMANDS.values())
    for name in console.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(name, "--help")
        assert stop.value.code == 0 and capsys.readouterr().out.startswith(f"usage: maskrcnn {name} ")
    assert run("validate", "--weights-path", "nowhere.pth") == 2
    assert capsys.readouterr().err == "error: nowhere.pth: no such checkpoint file\n"
    assert run("dance") == 2 and "give one of train, validate, predict, check" in capsys.readouterr().err
    assert run() == 0 and "maskrcnn train" in capsys.readouterr().out
