"""A model as a checkpoint and as each exported file -> how long each takes on a CPU, and how much memory."""
