"""One place opens files to be written: a lint by ast, with its exceptions.

`train_utils/io/files.py` and `unfinished.py` open them exclusively or without following a link, and rename them when
they are complete. All else writes into what these have opened: an open file is called `file`, `content` or `writer`.
"""

import ast

import pytest

from tests.small_runs import ROOT
from tests.test_forbidden_calls import dotted, project_files

OPEN_FILES = {"file", "content", "writer"}
CALLS = {  # the last part of a dotted call -> the modules that it is forbidden of (none: of any)
    **dict.fromkeys(("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to"), set()),
    **dict.fromkeys(("mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "SummaryWriter"), set()),
    **dict.fromkeys(("unlink", "rmtree", "copyfile", "copytree", "copy2", "tofile", "truncate", "save_model"), set()),
    **dict.fromkeys(("rename", "remove", "link", "symlink", "renames"), {"os"}),
    "replace": {"os"},
    **dict.fromkeys(("copy", "move"), {"shutil"}),
}
TARGETS = {  # which argument
    **dict.fromkeys(("save", "savefig", "savez", "savez_compressed", "savetxt"), 0),
    "torch.save": 1, "torch.export.save": 1,
}  # fmt: skip
ALLOWED = {  # file -> what it may do, and why
    # checkpoints that are not kept, by their exact names, or that get a name of their own as the run left them behind;
    # TensorBoard's folder within one that a failed run has made
    "train_utils/checkpoints/run_folder.py": {"unlink", "os.replace", "rmtree"},
    "train_utils/run/epochs.py": {"unlink"},  # model_previous.pth
    "train_utils/io/array_cache.py": {"unlink"},  # indexes, by exact name and content
    "train_utils/prediction/large_drawings.py": {"unlink"},  # tiles of an earlier call, by the form of their names
    "train_utils/prediction/kept/kept_file.py": {"unlink", "truncate"},  # NAME.unfinished
    "train_utils/prediction/kept/growing_results.py": {"unlink"},  # the json of an earlier call
    "train_utils/checkpoints/run_lock.py": {"truncate"},  # the lock, opened by open_to_append
    "train_utils/logs/board.py": {"SummaryWriter"},  # TensorBoard's own files, in a folder that is no link
    "train_utils/data/formats/shapes.py": {"os.rename"},  # of an unfinished folder
    "tools/conversion.py": {"os.link", "symlink_to"},  # images in it
    "train_utils/prediction/exporting/export.py": {"save_model"},  # OpenVINO's two files, in an unfinished folder
    "train_utils/cli/command.py": {"os.open"},  # /dev/null
    "train_utils/processes/stop_signal.py": {"os.open"},  # likewise
    "train_utils/processes/distributed.py": {"open"},  # likewise
}
WRITERS = {"train_utils/io/files.py", "train_utils/io/unfinished.py"}
OTHERS = ("tests", "benchmarks", "findings", "docs")  # write for themselves, into folders of their own


def writes(source: str) -> list[str]:
    """What writes, removes or renames files in a module's text."""
    tree, found = ast.parse(source), []
    own = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
           and (n.module or "").startswith("train_utils.io") for a in n.names}  # fmt: skip
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = dotted(call.func)
        module, _, last = name.rpartition(".")
        if name in own or module == "self" or (module == "files" and "files" in own):
            continue
        if last in CALLS and (not CALLS[last] or module in CALLS[last]):
            found.append(name if module in CALLS[last] else last)
        elif last == "open":
            found += _of_open(call, name, module)
        elif (place := TARGETS.get(name, TARGETS.get(last))) is not None:
            target = call.args[place] if len(call.args) > place else None
            if not (isinstance(target, ast.Name) and target.id in OPEN_FILES):
                found.append(name)
    return found


def _of_open(call: ast.Call, name: str, module: str) -> list[str]:
    first = call.args[0] if call.args else None
    if module == "os" or (module and isinstance(first, ast.Name) and first.id in OPEN_FILES):
        return [name] if module == "os" else []
    position = 1 if module in ("", "io", "av", "Image") else 0  # of Path.open
    modes = [k.value for k in call.keywords if k.arg == "mode"] or call.args[position : position + 1]
    if not modes or not isinstance(modes[0], ast.Constant):
        return [name] * (bool(modes) and not module)
    return [name] if set(str(modes[0].value)) & set("wax+") else []


def test_one_place_alone_writes_and_what_is_allowed_is_still_done():
    files = {path.relative_to(ROOT).as_posix(): path for path in project_files()}
    found = {
        (name, what)
        for name, path in files.items()
        if name not in WRITERS and not name.startswith(OTHERS)
        for what in writes(path.read_text(encoding="utf-8"))
    }
    allowed = {(name, what) for name, whats in ALLOWED.items() for what in whats}
    assert found - allowed == set() == allowed - found
    assert all(writes(files[name].read_text(encoding="utf-8")) for name in WRITERS)


@pytest.mark.parametrize(
    "source",
    [
        "open('x', 'w')",
        "open('x', mode='ab')",
        "open('x', mode)",
        "path.open('w')",
        "path.open(mode='x')",
        "os.open('x', flags)",
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "os.replace(a, b)",
        "os.rename(a, b)",
        "path.unlink()",
        "shutil.rmtree(a)",
        "shutil.copyfile(a, b)",
        "np.save(path, a)",
        "np.save('x.npy', a)",
        "figure.savefig(path)",
        "image.save(folder / 'x.png')",
        "torch.save(a, path)",
        "tempfile.TemporaryDirectory()",
        "SummaryWriter(a)",
        "av.open(str(path), 'w', format='mp4')",
    ],
)
def test_each_is_seen(source):
    assert len(writes(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "open('x')\nopen('x', 'rb')\nopen('x', encoding='utf-8')",
        "Image.open(path, formats=formats())\nav.open(str(path), options=options)\npath.open()",
        "from train_utils.io.files import write_text\nwrite_text(path, 'x')",
        "from train_utils.io import files\nfiles.write_text(path, 'x')",
        "np.save(file, a)\ntorch.save(a, writer)\nimage.save(file, 'PNG')\nfigure.savefig(file)",
        "av.open(file, 'w', format='mp4')",
        "name.replace('a', 'b')",
    ],
)
def test_what_is_harmless_passes(source):
    assert writes(source) == []
