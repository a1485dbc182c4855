"""What the tests share: the place of the real data, images with targets, and a fixed random state."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from tests import sample_images, small_runs

# of commands that tests start: they say nothing about a busy machine, which test workers make of this one
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if os.environ.get("OMP_NUM_THREADS") != "1":
    os.environ.pop("OMP_NUM_THREADS", None)  # a fork of a process with threads of OpenMP's waits for them for ever
    torch.set_num_threads(1)  # the models are small: more threads would mostly wait, most of all beside other work


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Several files at once in the whole suite; what is named on the command line runs in this process."""
    whole = config.args_source is not config.ArgsSource.ARGS
    return min(4, os.cpu_count() or 1) if whole else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests go first: one that is begun last would keep one process busy while the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable: files stay whole, and in their order


# no deadline: the machine may be busy; no database: nothing is left in the working folder
hypothesis.settings.register_profile("project", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("project")


def find_shared_data() -> Path | None:
    """The folder of real data: $MASKRCNN_DATA, else ../shared/data beside the project; None when missing."""
    given = os.environ.get("MASKRCNN_DATA")
    folder = Path(given) if given else small_runs.ROOT.parent / "shared" / "data"
    return folder.resolve() if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped only when it is not there."""
    folder = find_shared_data()
    if folder is None:
        pytest.skip("no real data: set MASKRCNN_DATA, or put it into ../shared/data")
    return folder


@pytest.fixture(scope="session")
def samples() -> list[tuple[torch.Tensor, dict]]:
    """Six (image uint8 [3, H, W], target), all of different sizes: COCO photos, else drawn ones."""
    folder = find_shared_data()
    if folder is not None and (folder / "coco_mini").is_dir():
        return sample_images.coco_photos(folder / "coco_mini", 6)
    return sample_images.drawn_images(6)


@pytest.fixture
def command(capsys):
    """Runs a script's main in this process: (script, *words) -> (exit status, stdout, stderr)."""
    return lambda script, *words: (small_runs.call(script, *words), *capsys.readouterr())


@pytest.fixture(autouse=True)
def fixed_seed():
    """Each test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
