"""The adding problem: predict the sum of the two marked numbers of a sequence.

    jrnn train configs/adding.py
    jrnn train configs/adding.py:cell=gru,length=200

From Hochreiter and Schmidhuber, 1997, Long short-term memory, in the form of Le, Jaitly and Hinton,
2015, A simple way to initialize recurrent networks of rectified linear units. A constant prediction
has a mean squared error of 0.167.
"""

from jrnn.config import make_cell
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", length: int = 100, hidden: int = 64, runlocal: bool = False
) -> Experiment:
    """Returns the experiment of this config.

    Args:
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      length: number of steps of a sequence.
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    return Experiment(
        task=Adding(length, *((200, 100) if runlocal else ())),
        network=Network(make_cell(cell, hidden)),
        optimizer=Optimizer(5e-3, "adam", "cosine", warmup=0.02),
        steps=40 if runlocal else 4000,
        batch_size=64,
        eval_every=20 if runlocal else 250,
    )
