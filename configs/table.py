"""A forecast for your own time series in a .csv file with a header.

jrnn train configs/table.py:path=mine.csv,horizon=24
jrnn train configs/table.py:path=mine.csv --task.columns load temperature --task.targets load
"""

from jrnn.config import make_cell
from jrnn.tasks import Table
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    path: str = "data.csv",
    window: int = 64,
    horizon: int = 1,
    cell: str = "lstm",
    hidden: int = 64,
    runlocal: bool = False,
) -> Experiment:
    """The experiment.

    Args:
      path: the file.
      window: rows that the network sees.
      horizon: how many rows ahead it forecasts.
      cell: name of the cell.
      hidden: hidden units.
      runlocal: a few steps, to see that all of it runs.
    """
    return Experiment(
        task=Table(path, window=window, horizon=horizon),
        network=Network(make_cell(cell, hidden)),
        optimizer=Optimizer(3e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.01),
        steps=40 if runlocal else 2000,
        eval_every=20 if runlocal else 100,
    )
