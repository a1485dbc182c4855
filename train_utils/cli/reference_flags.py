"""Flags of torchvision's reference scripts and those made after them, so that their commands run here too."""

from backbone.errors import InputError
from train_utils.cli.command import non_negative_int, positive_int

OF_THE_LAUNCHER = {"world_size", "dist_url"}  # torchrun decides what they say


def add_reference_arguments(group):
    """Add them to an argparse group; those that other projects share with this one are not among them."""
    add = group.add_argument
    add(
        "--start-epoch",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="begin with epoch N and its learning rate, as after N epochs; a resumed run goes on where it was",
    )
    add("--lr-step-size", type=positive_int, metavar="N", help="the rate falls every N epochs: --lr-steps N 2N ...")
    add("--world-size", type=positive_int, help="has no effect: torchrun's --nproc_per_node decides")
    add("--dist-url", metavar="URL", help="has no effect: torchrun decides")


def lr_steps(args, usual_epochs):
    """--lr-step-size as --lr-steps. InputError where both are given and differ."""
    size, epochs = args.lr_step_size, args.epochs or usual_epochs
    steps = list(range(size, epochs, size))
    if args.lr_steps not in (None, steps):
        shown = " ".join(f"{step:g}" for step in args.lr_steps)
        raise InputError(f"--lr-step-size {size} and --lr-steps {shown}: give one of them")
    return steps


def check_reference_flags(args, world, resumed):
    """Lines that say which of the flags, resolved, were left aside. resumed: there is a checkpoint to go on from."""
    lines = []
    if resumed and args.start_epoch:
        lines.append(f"--start-epoch {args.start_epoch}: left aside, the resumed run goes on where it was")
    elif args.start_epoch >= args.epochs and not args.test_only:
        raise InputError(f"--start-epoch {args.start_epoch}: nothing is left of {args.epochs} --epochs")
    if args.world_size not in (None, world.size):
        lines.append(f"--world-size {args.world_size}: left aside, torchrun started {world.size} process(es)")
    if args.dist_url not in (None, "env://"):
        lines.append(f"--dist-url {args.dist_url}: left aside, torchrun decides where processes meet")
    return lines
