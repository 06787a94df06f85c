"""State tracking: predict the product of all permutations so far, at each step.

    jrnn train configs/tracking.py                       # the group S3, tested at 128 steps
    jrnn train configs/tracking.py:cell=mingru,degree=2  # parity, which minGRU does not learn

From Merrill, Petty and Sabharwal, 2024, The illusion of state in state-space models. Degree 2 is
parity; random predictions have an accuracy of 1 / degree!. A network that has learned the state
transitions generalizes to longer sequences: an LSTM with 32 units solves S3 at 128 steps after 15
seconds of training at 32 steps, on two CPU cores.
"""

from jrnn.config import make_cell
from jrnn.tasks import Tracking
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm",
    degree: int = 3,
    length: int = 32,
    test_length: int = 128,
    hidden: int = 32,
    runlocal: bool = False,
) -> Experiment:
    """Returns the experiment of this config.

    Args:
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      degree: number of permuted elements.
      length: number of steps of a training or validation sequence.
      test_length: number of steps of a test sequence.
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    sizes = {"train_size": 200, "eval_size": 100} if runlocal else {}
    return Experiment(
        task=Tracking(degree, length, test_length, **sizes),
        network=Network(make_cell(cell, hidden), embedding_size=8),
        optimizer=Optimizer(1e-2, "adam", "cosine", warmup=0.05),
        steps=40 if runlocal else 2000,
        eval_every=20 if runlocal else 200,
    )
