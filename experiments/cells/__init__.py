"""The study of cells: `python -m experiments.cells.run`."""
