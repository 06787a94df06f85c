"""Forecasting of your own time series, from a .csv file with a header.

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
    """Returns the experiment of this config.

    Args:
      path: path of the CSV file, whose first line has the names of the columns.
      window: number of rows in an input sequence.
      horizon: number of rows ahead to predict.
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    return Experiment(
        task=Table(path, window=window, horizon=horizon),
        network=Network(make_cell(cell, hidden)),
        optimizer=Optimizer(3e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.01),
        steps=40 if runlocal else 2000,
        eval_every=20 if runlocal else 100,
    )
