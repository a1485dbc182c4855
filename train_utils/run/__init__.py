"""RunConfig -> a training run: loop, epochs, steps, evaluation, state and resume."""
