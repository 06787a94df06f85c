"""Runs: the training loop, asynchronous dispatch, checkpoints, metrics, locks and summaries."""
