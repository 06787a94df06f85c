"""Runs: the training loop, asynchronous dispatch, checkpoints, metrics and signals."""
