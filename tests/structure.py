"""How large and how entangled the checkout is that this file stands in.

    python -m tests.structure [--files] [--json]      --files: with what each figure counts

Product is every .py file outside tests/, findings/ and docs/ (and outside folders named .* or venv*). The figures:

- training step, evaluation: product files outside benchmarks/ of which some function runs. A training step goes from
  asking the training loop for its first step, through the loader, the data set's __getitem__, forward, backward and
  optimiser step, until the loop hands over its record. The loop is given a stop signal, as in a run, but no averaged
  weights and no counts for TensorBoard; what a trainer does around it (console, TensorBoard, progress) is not called.
  An evaluation is the call of `evaluate` for two images, from the loader's first batch to the COCO numbers.
  Data, model, loaders and optimiser are made before. A tiny ResNet-18 on coco_mini, else on the built-in shapes.
- imported by a script: product modules loaded by `import SCRIPT` in a new process; what functions import is not seen.
- largest folder: .py files directly in a folder, without __init__.py.
- code lines: lines with a token, without comments and docstrings.
- parameters: self and cls are not counted, *args and **kwargs are one each.
- not fully typed: functions, nested ones too, with a parameter (but self and cls) or return value without annotation.
"""

import argparse
import ast
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_PRODUCT = {"tests", "findings", "docs"}
SCRIPTS = ("validation", "predict", "train")
MANY = 7  # parameters; functions with more are counted
# Imports argv[1], then each of the others in a fork of its own, and prints the files of the modules that are there.
IMPORTS = """
import importlib, os, sys
importlib.import_module(sys.argv[1])
for script in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(script)
        files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
        print(*files, sep="\\n", end="\\0", flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

# --- adapters: all that knows where things are in the project ---


def open_data(folder: Path) -> tuple[Any, Any, Any]:
    """(train, val, label map) of coco_mini, else of a few shapes drawn into folder."""
    from train_utils.data import opening
    from train_utils.data.formats.shapes import make_shapes

    mini = Path(os.environ.get("MASKRCNN_DATA") or ROOT.parent / "shared" / "data") / "coco_mini"
    return opening.open_data(mini if mini.is_dir() else make_shapes(folder / "shapes", train=4, val=2, size=64))


def prepared(train: Any, val: Any, label_map: Any) -> dict[str, Callable[[], Any]]:
    """What asks the training loop for its first step, and what evaluates two images, all being set up."""
    from tests.tiny_model import tiny_model
    from train_utils.data.loaders import EvalLoader, TrainLoader
    from train_utils.data.options import LoaderOptions
    from train_utils.processes.distributed import World
    from train_utils.processes.stop_signal import StopSignal
    from train_utils.run.evaluation import evaluate
    from train_utils.run.optimization import Precision, TrainState, build_optimizer, build_schedule
    from train_utils.run.step import StepHooks, train_one_epoch
    from transforms import build_augment

    world, model = World.single("cpu"), tiny_model(classes=label_map.num_labels - 1)
    optimizer = build_optimizer(model, "sgd", 0.001)
    schedule = build_schedule(optimizer, total_steps=2, warmup_steps=1)
    state = TrainState(model, world.wrap(model), optimizer, schedule, Precision(world.device))
    loader, two = TrainLoader(train, build_augment(), world, LoaderOptions(2)), val.subset([0, 1])
    steps = train_one_epoch(state, loader, world, 0, hooks=StepHooks(StopSignal(world).requested))
    val_loader = EvalLoader(two, world, LoaderOptions(1), model.config)
    return {"a training step": lambda: next(steps), "an evaluation": lambda: evaluate(model, val_loader, two, world)}


# --- counts ---


def python_files(root: Path = ROOT, tests: bool = False) -> list[Path]:
    """The product's .py files, or those of tests/."""
    files = {path: path.relative_to(root).parts for path in root.rglob("*.py")}
    wanted = [path for path, parts in files.items() if not any(part.startswith((".", "venv")) for part in parts)]
    return sorted(p for p in wanted if (files[p][0] == "tests" if tests else files[p][0] not in NOT_PRODUCT))


def files_run(function: Callable[[], Any], root: Path = ROOT) -> list[str]:
    """Product files, without benchmarks/, of which calling `function` runs some function."""
    seen, before = set(), sys.getprofile()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # not the body of a module or class
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    files = [path.relative_to(root) for path in python_files(root) if str(path) in seen]
    return [path.as_posix() for path in files if path.parts[0] != "benchmarks"]


def modules_imported(scripts: Iterable[str], root: Path = ROOT, first: str = "torch") -> list[list[str]]:
    """Product modules that `import SCRIPT` loads in a new process, for each script.

    first: what is imported once for all of them, since it takes longest; nothing of the product.
    """
    command = [sys.executable, "-c", IMPORTS, first, *scripts]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    loaded, files = [set(part.splitlines()) for part in done.stdout.split("\0")[:-1]], python_files(root)
    return [[path.relative_to(root).as_posix() for path in files if str(path) in names] for names in loaded]


def folder_counts(files: Iterable[str]) -> list[tuple[str, int]]:
    """(folder, modules directly in it without __init__.py), the largest first."""
    return Counter(str(path.parent) for path in map(PurePosixPath, files) if path.name != "__init__.py").most_common()


def code_lines(source: str) -> int:
    """Lines with a token, without comments and docstrings."""
    code, docstrings = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code - docstrings)


def functions(source: str) -> list[tuple[str, int, bool]]:
    """(name with its line, number of parameters, whether all is annotated) of each function."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            given = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x]
            given = given[bool(given) and given[0].arg in ("self", "cls") :]
            typed = node.returns is not None and all(x.annotation for x in given)
            found.append((f"{node.lineno} {node.name}", len(given), typed))
    return found


def figures() -> dict[str, tuple[int, list[str]]]:
    """{what: (figure, what it counts)}."""
    with tempfile.TemporaryDirectory() as folder:
        runs = prepared(*open_data(Path(folder)))
        counted = {f"files of {what}": files_run(function) for what, function in runs.items()}
    imported = zip(SCRIPTS, modules_imported(SCRIPTS), strict=True)
    counted |= {f"modules that {script} imports": names for script, names in imported}
    files = [python_files(), python_files(tests=True)]
    product, tests = ({p.relative_to(ROOT).as_posix(): p.read_text() for p in paths} for paths in files)
    every = [(f"{path}:{name}", *found) for path, text in product.items() for name, *found in functions(text)]
    many = sorted([f for f in every if f[1] > MANY], key=lambda f: -f[1])
    counted["modules of the product"] = list(product)
    counted[f"functions of more than {MANY} parameters"] = [f"{name} {count}" for name, count, _ in many]
    counted["functions not fully typed"] = [name for name, _, typed in every if not typed]
    result = {what: (len(names), names) for what, names in counted.items()}
    for what, texts in (("product", product), ("tests", tests)):
        folders, lines = folder_counts(texts), {path: code_lines(text) for path, text in texts.items()}
        result[f"largest folder, {what}"] = folders[0][1], [f"{name} {count}" for name, count in folders]
        result[f"code lines, {what}"] = sum(lines.values()), [f"{path} {count}" for path, count in lines.items()]
    return result


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="with what each figure counts")
    parser.add_argument("--json", action="store_true", help="as JSON; with --files each is [figure, what it counts]")
    args, found = parser.parse_args(), figures()
    if args.json:
        print(json.dumps(found if args.files else {what: value for what, (value, _) in found.items()}, indent=2))
    else:
        for what, (value, names) in found.items():
            print(f"{what:<40} {value:>6,}", *(names if args.files else []), sep="\n    ")


if __name__ == "__main__":
    main()
