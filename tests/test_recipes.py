"""The script that measures recipes: which runs it makes, that it goes on where it was cut, and its table."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from backbone.errors import InputError
from benchmarks.recipes import __main__ as recipes
from tests.test_train_commands import resolved


def test_parts_are_measured_alone_and_left_out(tmp_path, monkeypatch, capsys):
    commands, fails = [], []

    def train(command, cwd, stdout, stderr):
        commands.append(command)
        return SimpleNamespace(returncode=2 if "--zoom" in command and fails else 0)

    monkeypatch.setattr(subprocess, "run", train)
    monkeypatch.setattr(recipes, "cpu_seconds", iter(range(1, 99)).__next__)
    monkeypatch.setattr(recipes, "history", lambda folder: [{"segm_AP": 0.1 * (len(folder.name) - 4)}])
    argv = [
        "--data-path",
        "J",
        "--output-dir",
        str(tmp_path),
        "--seeds",
        "2",
        "--only",
        "ema",
        "--best",
        "zoom",
        "blur",
    ]
    fails.append(True)
    recipes.main([*argv, "--", "--device", "cpu"])
    assert "zoom_0: ended with status 2" in capsys.readouterr().out
    assert len(commands) == 10  # five recipes: + blur is best - zoom
    assert all(command[command.index("--seed") + 1] in "01" and "--device" in command for command in commands)
    assert all("reference" in command for command in commands)
    (tmp_path / "zoom_0" / "model_0.pth").touch()
    done, fails[:] = len(commands), []
    recipes.main(argv)
    again = commands[done:]
    assert len(again) == 4 and all("--zoom" in command for command in again)  # what was not done
    assert ["--resume" in command for command in again] == ["zoom_0" in str(command) for command in again]
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("| recipe | seeds | mask AP | difference | CPU time |") + 2 :]
    assert [line.split("|")[1].strip() for line in table] == ["base", "+ ema", "best", "best - zoom", "best - blur"]
    assert "| base | 2 | 0.200 |  | 1.00 |" in table[0] and "| + ema | 2 | 0.100 | -0.100 | 1.00 |" in table[1]
    assert json.loads((tmp_path / "ema_1" / "done.json").read_text())["ap"] == pytest.approx(0.1)
    recipes.main([*argv, "--table"])
    assert len(commands) == done + 4
    with pytest.raises(InputError, match="called typo; there are schedule"):
        recipes.main([*argv, "--only", "typo"])


@pytest.mark.parametrize("part", recipes.PARTS)
def test_flags_of_parts_are_those_of_training(part):
    found = resolved("--data-path", "d", *recipes.flags_of([part]))
    assert (found.recipe == "reference") == (part != "schedule")
