"""The data doctor: what the loader says of each odd case, all of it; oddities, doubles, anchors, corrected copies."""

import json
import os
import sys
from unittest.mock import patch

import pytest

from tests.faults import catalogue
from tools import check_data
from train_utils import annotation_cache
from train_utils.command import run_command


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command -> (exit status, stdout, stderr, check_data.json or None)."""
    def run(*words, samples=0):
        out = tmp_path / "checked"
        (out / "check_data.json").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["check_data", *map(str, words), "--output-dir", str(out), "--samples",
                                          str(samples)])
        try:
            status = run_command(check_data.main)
        except SystemExit as stop:
            status = stop.code
        path = out / "check_data.json"
        return status, *capsys.readouterr(), json.loads(path.read_text()) if path.exists() else None

    return run


def texts(found: dict, severity: str) -> list[str]:
    return [find["text"] for kind in found["finds"] if kind["severity"] == severity for find in kind["finds"]]


def counts(found: dict) -> dict[str, int]:
    return {kind["title"]: kind["count"] for kind in found["finds"]}


@pytest.mark.parametrize("case", catalogue.cases(), ids=lambda case: case.name)
def test_each_case_of_the_catalogue_is_told_as_training_tells_it(case, tmp_path, run):
    data = case.data(tmp_path / "data")
    case.make(data)
    data.write()
    with patch.dict(os.environ, {"MASKRCNN_CACHE": str(tmp_path / "cache")}), patch.object(
            annotation_cache, "WORTHWHILE", 1):
        for _ in range(2):  # the second reads what the first has stored
            status, _, err, found = run(data.folder, "--min-size", 64, "--max-size", 96)
            assert not err, err
    errors, warnings = texts(found, "error"), texts(found, "warning")
    if case.outcome == catalogue.ERROR:
        assert status == 2 and any(all(word in text for word in case.says) for text in [*errors, found["error"] or ""])
        assert errors
    else:
        assert status < 2 and not errors and found["error"] is None, errors
    if case.outcome == catalogue.SKIP:
        if case.of == "pictures":
            skipped = [text for text in warnings if all(word in text for word in case.says)]
            assert len(skipped) == 2 * case.skips  # in train and in val
        else:
            (reason,) = case.says
            number, reason = reason.split(" (first")[0].split(" ", 1)
            assert counts(found)[f"skipped: {reason}"] == 2 * int(number) == 2 * case.skips
