"""Copy memory: remember ten symbols over a long blank, then say them again.

    jrnn train configs/copy.py
    jrnn train configs/copy.py:cell=gru,delay=50

After Arjovsky, Shah and Bengio, 2016, Unitary evolution recurrent neural networks. Guessing right
one time in eight is what a network without memory reaches.
"""

from jrnn.config import make_cell
from jrnn.tasks import Copy
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", delay: int = 20, hidden: int = 128, runlocal: bool = False
) -> Experiment:
    """The experiment.

    Args:
      cell: name of the cell.
      delay: blank steps between the last symbol and the delimiter.
      hidden: hidden units.
      runlocal: a few steps, to see that all of it runs.
    """
    return Experiment(
        task=Copy(delay, **({"train_size": 200, "eval_size": 100} if runlocal else {})),
        network=Network(make_cell(cell, hidden), embedding_size=16),
        optimizer=Optimizer(3e-3, "adam", "cosine", warmup=0.02),
        steps=40 if runlocal else 4000,
        batch_size=64,
        eval_every=20 if runlocal else 250,
    )
