"""What the scripts share: data sets, the training loop, evaluation, checkpoints and logs."""
