"""docs/tour.ipynb runs, with fewer steps of training, and what it says of papers and lines is right."""

import importlib
import inspect
import json
import re
from functools import reduce

import nbformat
import pytest
from nbclient import NotebookClient

from tools.stages.lesson import LESSONS
from tools.stages.stage import ROOT, where

TOUR = ROOT / "docs" / "tour.ipynb"
PLACE = re.compile(r"\b([\w/]+\.py):(\d+) ([\w.]+)")
AGAIN = "run `jupyter execute --inplace docs/tour.ipynb`"


def texts(notebook) -> str:
    """All that the notebook's cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(TOUR, as_version=4)


@pytest.mark.slow
def test_it_runs(stored, monkeypatch, tmp_path):
    for name, value in {"TOUR_STEPS": "16", "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    notebook = NotebookClient(stored, timeout=300, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    said = texts(notebook)
    losses = [float(loss) for loss in re.findall(r"step +\d+  loss ([\d.]+)", said)]
    assert len(losses) == 2 and losses[-1] < 0.8 * losses[0]
    assert "keep the same ones: True" in said and "proposals    records: 1," in said
    places = {match[0] for match in PLACE.finditer(said)}
    assert places >= {where(function) for lesson in LESSONS for function in lesson.code}
    images = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert len(images) >= len(LESSONS) - 2  # after so few steps nothing may be found: no masks, no paths


def test_it_is_stored_with_its_outputs(stored):
    assert TOUR.stat().st_size < 1_500_000
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == list(
        range(1, sum(cell.cell_type == "code" for cell in stored.cells) + 1)
    ), AGAIN
    assert "Traceback" not in texts(stored)
    content = json.loads(TOUR.read_text(encoding="utf-8"))
    assert not re.search(r"/(home|root|tmp|work|opt)/", str([cell for cell in content["cells"]]))


def test_every_stage_is_shown_once_in_order(stored):
    source = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "code")
    assert re.findall(r'^show\("(\w+)"\)$', source, re.M) == [lesson.name for lesson in LESSONS]


def test_every_stage_names_a_section_of_its_papers(stored):
    """A section's heading is followed by the papers' sections that the stage's lesson names."""
    told = {}
    for before, cell in zip(stored.cells, stored.cells[1:], strict=False):
        for name in re.findall(r'^show\("(\w+)"\)$', cell.source, re.M):
            told[name] = before.source
    for lesson in LESSONS:
        for paper, section in lesson.papers:
            number = re.match(r"\d(\.\d)*", section)[0]
            assert re.search(rf"{paper}, sections? [^;]*{re.escape(number)}", told[lesson.name]), lesson.name


def test_the_stored_lines_are_of_the_functions_they_name(stored):
    """Not always the first: a line or two above a function should not ask for another run."""
    places = set(PLACE.findall(texts(stored)))
    assert len(places) > 25
    for path, line, name in places:
        module = importlib.import_module(path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
        lines, first = inspect.getsourcelines(inspect.unwrap(reduce(getattr, name.split("."), module)))
        assert first - 10 <= int(line) < first + len(lines) + 10, f"{path}:{line} is no longer {name}: {AGAIN}"
