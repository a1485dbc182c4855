"""Train Mask R-CNN in several processes, one per GPU (or on the CPU with --device cpu), started by torchrun.

    torchrun --nproc_per_node=8 train_multi_GPU.py --data-path DATA --batch-size 2 --amp
    torchrun --nproc_per_node=8 train_multi_GPU.py --batch-size 8 --lr 0.08 --pretrain False --amp True
    torchrun --nproc_per_node=2 train_multi_GPU.py --device cpu
    torchrun --nproc_per_node=8 train_multi_GPU.py --data-path DATA --resume auto

The flags are train.py's. --batch-size is per process; N processes equal one with --accumulate-steps N.
Writes to ./multi_train (--output-dir). `python train_multi_GPU.py --help` lists all flags.
"""

import sys

from train_utils.cli.command import EXIT_OK, run_command
from train_utils.cli.parser import Parser
from train_utils.processes.distributed import World
from train_utils.run.config import USED_MOST, RunConfig, add_arguments
from train_utils.run.loop import run


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(description=__doc__, first=USED_MOST)
    add_arguments(parser)
    given = parser.given()
    config = RunConfig.of(given)
    world = World.from_environment(config.device, config.dist_timeout)
    try:
        ended = run(given, world, output_dir="./multi_train")
    finally:
        world.close()
    return ended if isinstance(ended, int) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
