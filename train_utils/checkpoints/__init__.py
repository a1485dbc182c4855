"""Train state <-> checkpoints in a run folder, which one run locks."""
