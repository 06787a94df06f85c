"""Forecasting of your own time series, from a .csv file with a header.

jrnn train configs/table.py:path=load.csv,horizon=24 --task.targets load --task.missing fill
jrnn predict RUN load.csv --out forecast.csv

The forecast is compared with persistence and, if the dates have a usual period, with the
seasonal-naive forecast. `jrnn train configs/table.py --help` lists the options of the file, such as
separators, dates, several series, missing values, and Gaussian or quantile forecasts.
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
      horizon: number of rows to predict.
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm"; "grud" and "cfc"
        use missing values and times with --task.missing mask.
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
