"""Train Mask R-CNN in one process, on a GPU where there is one, else on the CPU.

    python train.py                                    the built-in shapes: 4 minutes on two CPU cores
    python train.py --data-path DATA                   COCO or VOC data; ResNet-50 with COCO weights
    python train.py --data-path DATA --output-dir runs/mine --amp      into a folder of its own, in mixed precision
    python train.py --output-dir runs/mine --resume auto               go on where that run was cut
    python train.py --data-path DATA --test-only       evaluate the COCO weights, do not train

Writes checkpoints, results, curves and TensorBoard files to ./save_weights (--output-dir) and ends by naming
them. SIGTERM and Ctrl-C finish the step, save, and leave with exit status 143 and 130. All flags: --help.
"""

import sys

from train_utils.cli.command import EXIT_OK, run_command
from train_utils.cli.device import pick_device
from train_utils.cli.parser import Parser
from train_utils.processes.distributed import World
from train_utils.run.config import USED_MOST, RunConfig, add_arguments
from train_utils.run.loop import run


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(description=__doc__, first=USED_MOST)
    add_arguments(parser)
    given = parser.given()
    ended = run(given, World.single(pick_device(RunConfig.of(given).device)))
    return ended if isinstance(ended, int) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
