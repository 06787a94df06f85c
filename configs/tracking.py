"""State tracking: read permutations, say at each step how the things lie by now.

    jrnn train configs/tracking.py                       # the group S3, tested at 128 steps
    jrnn train configs/tracking.py:cell=mingru,degree=2  # parity, which minGRU fails

After Merrill, Petty and Sabharwal, 2024, The illusion of state in state-space models. Degree 2 is
parity; at random one answer in degree! is right. A network that has learned the rule is right at
any length: the LSTM of 32 units is, at 128 steps of S3, after 15 seconds on two CPU cores.
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
    """The experiment.

    Args:
      cell: name of the cell.
      degree: number of things that are permuted.
      length: steps of a training sequence.
      test_length: steps of a test sequence.
      hidden: hidden units.
      runlocal: a few steps, to see that all of it runs.
    """
    sizes = {"train_size": 200, "eval_size": 100} if runlocal else {}
    return Experiment(
        task=Tracking(degree, length, test_length, **sizes),
        network=Network(make_cell(cell, hidden), embedding_size=8),
        optimizer=Optimizer(1e-2, "adam", "cosine", warmup=0.05),
        steps=40 if runlocal else 2000,
        eval_every=20 if runlocal else 200,
    )
