"""Commands and flags that the README and the pages in docs/ name are known; the Chinese README keeps in step."""

import importlib
import itertools
import re
import sys

import pytest

import predict
import validation
from tests.small_runs import ROOT
from train_utils.cli.parser import Parser
from train_utils.run.config import add_arguments

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TOOLS = (
    "tools.check_data", "tools.coco_to_npy", "tools.export", "tools.npy_to_coco", "tools.pack_dataset",
    "tools.visualise_stages",
)  # fmt: skip


def commands_of(text):
    """The words of each command: lines of bash blocks, and code within sentences."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    rest = re.sub(r"```.*?```", "", text, flags=re.S).replace("\n", " ")
    lines = [*"".join(blocks).replace("\\\n", " ").splitlines(), *re.findall(r"`([^`]+)`", rest)]
    parts = [part for line in lines for part in re.split(r"  #| && ", line)]
    return [[word for word in part.split() if word != "…"] for part in parts if part.strip(" …")]


def parse(script, words, monkeypatch):
    """Give the words to the parser of a script or module; what has none must exist."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    if script in ("train.py", "train_multi_GPU.py"):
        parser = Parser()
        add_arguments(parser)
        parser.parse_args()
    elif script in ("validation.py", "predict.py"):
        {"validation.py": validation, "predict.py": predict}[script].parse()
    elif script in TOOLS:
        importlib.import_module(script).parse()
    else:
        path = ROOT / script.replace(".", "/")
        assert (ROOT / script).is_file() or path.with_suffix(".py").exists() or (path / "__main__.py").exists(), script


def script_of(words):
    """(script or module, its words) of a command that starts one of ours with something to do, else None."""
    words = list(itertools.dropwhile(lambda word: "=" in word, words))
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("benchmarks", "tests", "tools"):
        return (words[2], words[3:]) if words[3:] or words[2] not in TOOLS else None
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    if not words or words[0] not in ("python", "torchrun") or not scripts:
        return None
    script, rest = words[scripts[0]], words[scripts[0] + 1 :]
    return (script, rest) if rest or script.startswith("train") else None


def known_flags(monkeypatch, capsys):
    """Every flag of any command."""
    for script in ("train.py", "validation.py", "predict.py", *TOOLS):
        with pytest.raises(SystemExit):
            parse(script, ["--help"], monkeypatch)
    own = set(re.findall(r"-{1,2}[a-z][a-z0-9-]*", capsys.readouterr().out))
    others = {"--nproc-per-node", "--max-restarts", "--full", "--train", "--val"}  # torchrun's and such
    return own | others


def test_commands_and_flags_are_known(monkeypatch, capsys):
    known, unknown = known_flags(monkeypatch, capsys), []
    for page in PAGES:
        commands = [words for words in commands_of(page.read_text(encoding="utf-8")) if "--help" not in words]
        for script, words in filter(None, map(script_of, commands)):
            try:
                parse(script, words, monkeypatch)
            except (SystemExit, AssertionError):
                unknown.append((page.name, script, words, capsys.readouterr().err))
        flags = [words[0] for words in commands if words[0].startswith("--") and len(words[0]) > 2]
        unknown += [(page.name, flag) for flag in flags if flag.replace("_", "-") not in known]
    assert unknown == []


def test_pages_have_commands():
    found = {page.name: commands_of(page.read_text(encoding="utf-8")) for page in PAGES}
    counts = {name: sum(map(bool, map(script_of, commands))) for name, commands in found.items()}
    least = {
        "README.md": 12, "coming_from_other_projects.md": 20, "data.md": 9, "figures.md": 9, "fine_tuning.md": 3,
        "looking.md": 6, "runs.md": 12,
    }  # fmt: skip
    assert {name: count for name, count in least.items() if counts[name] < count} == {}
    assert script_of(["CUDA_VISIBLE_DEVICES=0", "torchrun", "--nproc_per_node=2", "train_multi_GPU.py", "-b", "2"]) == (
        "train_multi_GPU.py",
        ["-b", "2"],
    )


def outline(page):
    """What a page has in any language: headings, code without its comments, spans of code, tables, links, figures."""
    blocks = re.findall(r"```.*?```", page, re.S)
    text = re.sub(r"```.*?```", "", page, flags=re.S)
    return {
        "headings": re.findall(r"^#+(?= )", text, re.M),
        "blocks": [re.sub(r"(?<=\S)  (?![a-z_]+\.py).*", "", block) for block in blocks],  # a wide gap, a comment
        "code": {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)},
        "flags": set(re.findall(r"--[a-z][\w-]*", text, re.A)),
        "tables": [table.count("\n") for table in re.findall(r"(?:^\|.*\n)+", text, re.M)],
        "links": sorted(re.findall(r"\]\((docs/[^)]+)\)", text)),
        "figures": sorted(re.findall(r"\d+(?:[.,]\d+)*(?:e-\d+)?", text)),
    }


def test_links_lead_to_pages_and_headings():
    anchors = {page: set(map(anchor, headings(page))) for page in PAGES}
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`]+`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)]+)\)", text):
            name, _, place = link.partition("#")
            target = page.parent / name if name else page
            assert "://" in link or target.exists(), f"{page.name}: {link}"
            assert not place or place in anchors[target.resolve()], f"{page.name}: {link}"


def headings(page):
    return re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)


def anchor(heading):
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_is_short_enough_to_be_read():
    for name in ("README.md", "README.zh-CN.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 160, name


def test_chinese_readme_is_in_step():
    english, chinese = (outline((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.zh-CN.md"))
    assert chinese == english
