"""The copy memory problem: repeat ten symbols after a delay.

    jrnn train configs/copy.py
    jrnn train configs/copy.py:cell=gru,delay=50

From Arjovsky, Shah and Bengio, 2016, Unitary evolution recurrent neural networks. A network without
memory has an accuracy of 1/8 on these symbols.
"""

from jrnn.config import make_cell
from jrnn.tasks import Copy
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", delay: int = 20, hidden: int = 128, runlocal: bool = False
) -> Experiment:
    """Returns the experiment of this config.

    Args:
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      delay: number of steps between the symbols and their copy.
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    return Experiment(
        task=Copy(delay, **({"train_size": 200, "eval_size": 100} if runlocal else {})),
        network=Network(make_cell(cell, hidden), embedding_size=16),
        optimizer=Optimizer(3e-3, "adam", "cosine", warmup=0.02),
        steps=40 if runlocal else 4000,
        batch_size=64,
        eval_every=20 if runlocal else 250,
    )
