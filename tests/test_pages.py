"""Commands and flags that the README and the pages in docs/ name are known; the Chinese pages keep in step."""

import importlib
import itertools
import json
import re
import sys

import pytest

import predict
import validation
from network_files.losses import LOSS_NAMES
from tests.small_runs import ROOT
from train_utils.cli.parser import Parser
from train_utils.evaluation.numbers import STAT_NAMES
from train_utils.logs.console import MetricLogger
from train_utils.run.config import add_arguments

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TOOLS = (
    "tools.check_data", "tools.coco_to_npy", "tools.export", "tools.npy_to_coco", "tools.pack_dataset",
    "tools.visualise_stages",
)  # fmt: skip
# flags of other projects, and of SLURM, that the pages translate or explain
THEIRS = {"--eval-only", "--num-gpus", "--pretrained-model", "--diameter", "--n-epochs", "--learning-rate", "--signal"}
THEIRS |= {"--cellprob-threshold", "--flow-threshold", "--inplace", "--chan", "--chan2"}  # and jupyter's
TRANSLATED = ("README", "docs/coming_from_other_projects", "docs/fine_tuning")  # pages with a Chinese twin


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
    others = {"--nproc-per-node", "--max-restarts", "--standalone", "--full", "--train", "--val"}  # torchrun's and such
    return own | others | THEIRS


def test_commands_and_flags_are_known(monkeypatch, capsys):
    known, unknown = known_flags(monkeypatch, capsys), []
    for page in PAGES:
        commands = [
            words for words in commands_of(page.read_text(encoding="utf-8")) if not {"--help", "--version"} & {*words}
        ]
        for script, words in filter(None, map(script_of, commands)):
            try:
                parse(script, words, monkeypatch)
            except (SystemExit, AssertionError):
                unknown.append((page.name, script, words, capsys.readouterr().err))
        flags = [words[0] for words in commands if words[0].startswith("--") and len(words[0]) > 2]
        unknown += [(page.name, flag) for flag in flags if flag.replace("_", "-") not in known]
    assert unknown == []


def test_pages_have_commands():
    found = {page.relative_to(ROOT).as_posix(): commands_of(page.read_text(encoding="utf-8")) for page in PAGES}
    counts = {name: sum(map(bool, map(script_of, commands))) for name, commands in found.items()}
    least = {
        "README.md": 9, "docs/cluster.md": 6, "docs/coming_from_other_projects.md": 30, "docs/correcting.md": 6,
        "docs/data.md": 9, "docs/figures.md": 9, "docs/fine_tuning.md": 3, "docs/looking.md": 6, "docs/runs.md": 12,
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
        "links": sorted(link.replace(".zh-CN", "") for link in re.findall(r"\]\(([\w./-]+\.\w+)[^)]*\)", text)),
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


@pytest.mark.parametrize("name", TRANSLATED)
def test_chinese_pages_are_in_step(name):
    english, chinese = (outline((ROOT / f"{name}{end}").read_text(encoding="utf-8")) for end in (".md", ".zh-CN.md"))
    assert chinese == english


def test_every_page_is_in_the_list_of_what_to_read():
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for pattern in ("*.md", "*.ipynb") for path in (ROOT / "docs").glob(pattern)} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in listed} == set()


def test_the_glossary_names_sections_of_the_tour_that_have_the_word():
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = "\n".join("".join(cell["source"]) for cell in cells)
    sections = dict(zip(*[iter(re.split(r"^## (\d+)\. ", texts, flags=re.M)[1:])] * 2, strict=True))
    glossary = (ROOT / "docs" / "README.md").read_text(encoding="utf-8").split("| section |\n")[1].split("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in glossary.splitlines()[1:]]
    assert len(rows) == 15
    for words, _, numbers in rows:
        there = "".join(sections[number] for number in numbers.split(", ")).lower()
        known = [re.sub(r"s$|y$", "", word) for word in re.split(r",? and |[,()] ?", words.lower()) if word]
        assert any(word.strip() in there for word in known), (words, numbers)


def test_each_field_of_the_console_and_each_number_is_explained():
    page = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
    log = MetricLogger("Epoch: [0]", 10)
    log.step(1.0, 0.5, dict.fromkeys(LOSS_NAMES, 1.0), 0.01)
    fields = re.findall(r"(\w+): ", log.line(0).partition("]  [")[2])
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert fields[0] == "eta" and {*fields, "max"} <= explained
    assert {*STAT_NAMES} <= explained
