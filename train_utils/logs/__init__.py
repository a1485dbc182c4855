"""Numbers of a run -> console, result files, step log and TensorBoard."""
