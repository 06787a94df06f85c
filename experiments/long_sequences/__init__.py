"""Benchmarks of long sequences: `python -m experiments.long_sequences.run`."""
