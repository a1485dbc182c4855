"""What the scripts share: data sets, the training loop, evaluation, checkpoints and logs."""

import backbone  # noqa: F401  before torch, for how its threads wait
