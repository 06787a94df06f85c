"""A run: the trainer, its dispatches, checkpoints, metrics and signals."""
