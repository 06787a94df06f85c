"""The adding problem: remember two marked numbers among many, and add them.

    jrnn train configs/adding.py
    jrnn train configs/adding.py:cell=gru,length=200

After Hochreiter and Schmidhuber, 1997, and Le, Jaitly and Hinton, 2015. A constant guess has a mean
squared error of 0.167.
"""

from jrnn.config import make_cell
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", length: int = 100, hidden: int = 64, runlocal: bool = False
) -> Experiment:
    """The experiment.

    Args:
      cell: name of the cell.
      length: steps of a sequence.
      hidden: hidden units.
      runlocal: a few steps, to see that all of it runs.
    """
    return Experiment(
        task=Adding(length, *((200, 100) if runlocal else ())),
        network=Network(make_cell(cell, hidden)),
        optimizer=Optimizer(5e-3, "adam", "cosine", warmup=0.02),
        steps=40 if runlocal else 4000,
        batch_size=64,
        eval_every=20 if runlocal else 250,
    )
