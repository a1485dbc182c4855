"""What the scripts share: data sets, the training loop, evaluation, checkpoints and logs."""

__version__ = "0.2.0"
