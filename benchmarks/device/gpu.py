"""One GPU -> what this project is worth on it: fidelity, exact resume, images a second beside torchvision, a profile.

    python -m benchmarks gpu                            at most 8 minutes on one H100 or H200
    python -m benchmarks gpu --device cpu --tiny        the same program at tiny sizes, to see that it runs

Each part prints its line when it is done, and `--out` holds all of them so far, so that a run that is cut is not lost.
A part has so many seconds of its own, and none begins when the time of all is up. Exit status 1: a part failed.
"""

import argparse
import copy
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import torchvision_model
from benchmarks.harness import Benchmark, LeftOut, Settings, describe_machine, largest_difference, measure
from benchmarks.harness.inputs import as_torchvision, photos
from benchmarks.models import BF16, Case, prepare_inference, prepare_training
from network_files import create_model
from train_utils.cli.command import run_command
from train_utils.cli.device import pick_device
from train_utils.cli.flags import number
from train_utils.cli.parser import Parser
from train_utils.io.files import write_text
from train_utils.run.optimization import FORCE, Precision, amp_dtype, build_optimizer

LARGEST = 5  # kernels that the profile names
WHOLE = 480.0  # seconds
TINY = {
    "min_size": 64, "max_size": 96, "anchor_sizes": (8, 16, 32, 64, 128), "rpn_batch_size_per_image": 16,
    "rpn_post_nms_top_n_train": 40, "rpn_post_nms_top_n_test": 30, "box_batch_size_per_image": 8,
    "box_detections_per_img": 8,
}  # fmt: skip


class TooLong(RuntimeError):
    """A part that took more than its seconds."""


class Part(NamedTuple):
    """run: settings -> what is found; seconds: that it may take."""

    run: Callable[[Settings], dict]
    seconds: float


def fidelity(settings: Settings, variant: str, dtype: torch.dtype, size: dict) -> dict:
    """Returns the largest difference of detections from torchvision's on the device, and how many there are."""
    images, targets = as_torchvision(
        photos(settings.data, 1, (96, 128) if size else (480, 640), 8), torch.device("cpu")
    )
    options = {"variant": variant, "backbone": "resnet18", **size}
    state = torchvision_model.live_state([(images[0], targets[0])], **options)
    theirs, ours = torchvision_model.build(**options), create_model(91, **options, trainable_layers=5)
    found = []
    for model in (ours, theirs):
        model.load_state_dict(state)
        with torch.inference_mode():
            found.append(model.to(settings.device, dtype).eval()([images[0].to(settings.device, dtype)])[0])
    a, b = found
    return {
        "detections": len(a["scores"]),
        **{key: largest_difference(a[key], b[key]) for key in ("boxes", "scores", "masks")},
    }


def resume(settings: Settings, size: dict) -> dict:
    """Says whether two steps, and one step, a save, a load and another step, give the same bits."""
    pairs = photos(settings.data, 2, (480, 640), 8)
    images = [image.to(settings.device) for image, _ in pairs]
    targets = [
        {key: value.to(settings.device) if hasattr(value, "to") else value for key, value in target.items()}
        | {"sample_seed": i}
        for i, (_, target) in enumerate(pairs)
    ]
    torch.manual_seed(0)
    model = create_model(91, "resnet18", **size).to(settings.device).train()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        ends = []
        for saved in (False, True):
            other = copy.deepcopy(model)
            optimizer = build_optimizer(other, "sgd", 1e-3)
            for step in range(2):
                sum(other(images, targets).values()).backward()
                Precision(settings.device).step(optimizer)
                if saved and step == 0:
                    states = copy.deepcopy((other.state_dict(), optimizer.state_dict()))
                    other = copy.deepcopy(model)
                    optimizer = build_optimizer(other, "sgd", 1e-3)
                    other.load_state_dict(states[0])
                    optimizer.load_state_dict(states[1])
            ends.append(list(other.state_dict().values()))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"same bits": all(torch.equal(a, b) for a, b in zip(*ends, strict=True))}


def speed(settings: Settings, prepare: Callable, case: Case) -> dict:
    """Returns images a second of both sides, taken by turns, and the memory of ours and theirs on a GPU, in MiB."""
    benchmark = Benchmark("", "", partial(prepare, case=case), largest_difference)
    row = measure(benchmark, settings, memory=False)
    rates = {"ours": case.images / row.ours, "torchvision": case.images / row.theirs}
    if settings.device.type == "cuda":
        for side, run in zip(("ours", "torchvision"), prepare(settings, case), strict=True):
            torch.cuda.reset_peak_memory_stats(settings.device)
            run()
            rates[f"{side} peak MiB"] = torch.cuda.max_memory_allocated(settings.device) / 2**20
    return {**rates, "times torchvision": row.theirs / row.ours, "difference": row.difference}


def profile(settings: Settings, case: Case) -> dict:
    """Returns where a training step's time goes: operators, launches, busy share, the largest kernels."""
    run, _ = prepare_training(settings, case)
    run()
    on_gpu = settings.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as seen:
        run()
        if on_gpu:
            torch.cuda.synchronize(settings.device)
    wall = time.perf_counter() - start
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = sorted(seen.key_averages(), key=lambda e: -getattr(e, time_of))
    busy = sum(getattr(e, time_of) for e in averages) / 1e6
    return {
        "wall s (profiled)": wall,
        "busy share": busy / wall,
        "launches": sum(e.count for e in averages if "LaunchKernel" in e.key),
        "host syncs": sum(e.count for e in averages if "Synchronize" in e.key),
        "largest": {e.key[:80]: getattr(e, time_of) / 1e6 for e in averages[:LARGEST]},
    }


def precision(settings: Settings, case: Case) -> dict:
    """Returns how far losses and gradient of mixed precision are from float32's, on the same samples."""
    found = []
    for dtype in (torch.float32, case.ours):
        run, _ = prepare_training(settings, replace(case, ours=dtype, theirs=torch.float32))
        losses = torch.stack([loss.float() for loss in run()])
        peak = torch.cuda.max_memory_allocated(settings.device) / 2**20 if settings.device.type == "cuda" else None
        found.append((losses, peak))
    (exact, exact_peak), (mixed, mixed_peak) = found
    return {
        "losses": mixed.tolist(),
        "largest relative difference": float(((mixed - exact).abs() / exact.abs().clamp(min=1e-6)).max()),
        **({} if mixed_peak is None else {"peak MiB": mixed_peak, "float32 peak MiB": exact_peak}),
    }


def parts_of(settings: Settings, tiny: bool) -> dict[str, Part]:
    """Returns the parts by name, the most telling first."""
    size = TINY if tiny else {}
    model = {"size": (96, 128), "backbone": "resnet18", "options": TINY} if tiny else {"size": (480, 806)}
    fixed_size = (64, 96) if tiny else (800, 1344)
    on_gpu = settings.device.type == "cuda"
    types = {"ours": BF16, "theirs": BF16} if on_gpu else {}
    of = partial(Case, **model, **types)
    parts: dict[str, Part] = {
        f"fidelity {variant} {str(dtype)[6:]}": Part(partial(fidelity, variant=variant, dtype=dtype, size=size), 20)
        for variant in ("v1", "v2")
        for dtype in (torch.float64, torch.float32)
    }
    training, inference = partial(speed, prepare=prepare_training), partial(speed, prepare=prepare_inference)
    few, many, batches = (1, 1, (1,)) if tiny else (2, 8, (2, 8, 16))
    parts["exact resume"] = Part(partial(resume, size=size or {"min_size": 400}), 30)
    parts["mixed precision"] = Part(partial(precision, case=replace(of(few), ours=_half(settings))), 30)
    parts |= {f"training, batch {n}": Part(partial(training, case=of(n)), 45) for n in batches}
    parts |= {
        f"inference, batch {n}": Part(partial(inference, case=of(n, paste=n > 1)), 35)
        for n in ((1,) if tiny else (1, 16))
    }
    parts[f"profile, batch {many}"] = Part(partial(profile, case=of(many)), 30)
    parts[f"training, CUDA graphs, batch {many}"] = Part(partial(training, case=of(many, fixed_size=fixed_size)), 45)
    if on_gpu or not tiny:  # it takes a compiler minutes on a CPU
        parts[f"training --compile, batch {many}"] = Part(partial(training, case=of(many, compiled=True)), 60)
    return parts


def _half(settings: Settings) -> torch.dtype:
    return amp_dtype(settings.device, FORCE) or BF16


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TooLong in a block that takes longer, as soon as Python is in charge; in a main thread of a Unix alone."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(*_: object) -> None:
        raise TooLong(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:i or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small images and networks")
    parser.add_argument("--seconds", type=number(float, above=0), default=WHOLE, help="for all (default: 480)")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="words of which the parts to run have one")
    parser.add_argument("--repeats", type=number(int, least=1), default=7, help="measured turns (default: 7)")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the results (default: gpu.json)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; returns 1 where one failed."""
    args = parse_args(argv)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic products
    device, start = pick_device(args.device), time.perf_counter()
    settings = Settings(device, None, args.repeats)
    results: dict[str, dict] = {"machine": {"is": describe_machine(device)}}
    print(results["machine"]["is"], flush=True)
    write_text(args.out, json.dumps(results, indent=2))
    failed = False
    for name, part in parts_of(settings, args.tiny).items():
        if args.parts and not any(word in name for word in args.parts):
            continue
        begun = time.perf_counter()
        left = args.seconds - (begun - start)
        if left <= 0:
            results[name] = {"left out": "no time was left"}
        else:
            most = min(part.seconds * max(args.seconds / WHOLE, 1), left)
            try:
                with at_most(most):
                    results[name] = part.run(replace(settings, seconds=most / 2))
            except LeftOut as reason:
                results[name] = {"left out": str(reason)}
            except Exception as error:  # whatever it is: a part that fails must not lose the others
                first = str(error).strip().partition("\n")[0]
                results[name], failed = {"error": f"{type(error).__name__}: {first}"}, True
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        results[name]["seconds"] = time.perf_counter() - begun
        print(f"{name}: {_line(results[name])}", flush=True)
        write_text(args.out, json.dumps(results, indent=2))
    return int(failed)


def _line(values: dict) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
