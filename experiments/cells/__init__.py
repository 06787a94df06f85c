"""A comparison of all cells: `python -m experiments.cells.run`."""
