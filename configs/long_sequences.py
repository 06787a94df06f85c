"""The adding problem over long sequences, for cells that run in parallel over time.

    jrnn train configs/long_sequences.py                              # minGRU, by the associative engine
    jrnn train configs/long_sequences.py:cell=minlstm,length=4000
    jrnn train configs/long_sequences.py:cell=paragru,engine=newton

From Hochreiter and Schmidhuber, 1997, at lengths of Martin and Cundy, 2018, Parallelizing linear
recurrent neural nets over sequence length. A constant prediction has a mean squared error of 0.167;
minGRU reaches 0.0005 in 135 seconds on two CPU cores.
"""

import inspect

from jrnn.config import make_cell
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "mingru",
    length: int = 1000,
    hidden: int = 64,
    engine: str = "auto",
    runlocal: bool = False,
) -> Experiment:
    """Returns the experiment.

    Args:
      cell: name of the cell; chrono initialization is used if the cell has `t_max`.
      length: number of steps of a sequence.
      hidden: number of hidden units of each of the two layers.
      engine: name of the engine.
      runlocal: whether to run only a few steps, as a smoke test.
    """
    built = make_cell(cell, hidden)
    if "t_max" in inspect.signature(type(built)).parameters:
        built = make_cell(cell, hidden, t_max=length)
    return Experiment(
        task=Adding(length, *((200, 100) if runlocal else ())),
        network=Network(built, num_layers=2, engine=engine),
        optimizer=Optimizer(1e-2, "adam", "cosine", warmup=0.05),
        steps=20 if runlocal else 1500,
        batch_size=32,
        eval_every=10 if runlocal else 250,
    )
