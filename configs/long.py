"""The adding problem over long sequences, for cells whose time can be run at once.

    jrnn train configs/long.py                              # minGRU, by the associative engine
    jrnn train configs/long.py:cell=minlstm,length=4000
    jrnn train configs/long.py:cell=paragru,engine=newton

After Hochreiter and Schmidhuber, 1997, at lengths of Martin and Cundy, 2018, Parallelizing linear
recurrent neural nets over sequence length. A constant guess has a mean squared error of 0.167; on
two CPU cores minGRU reaches 0.0005 in 135 seconds.
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
    """The experiment.

    Args:
      cell: name of the cell; one with chrono initialisation begins with it.
      length: steps of a sequence.
      hidden: hidden units of each of the two layers.
      engine: name of the engine.
      runlocal: a few steps, to see that all of it runs.
    """
    made = make_cell(cell, hidden)
    if "t_max" in inspect.signature(type(made)).parameters:
        made = make_cell(cell, hidden, t_max=length)
    return Experiment(
        task=Adding(length, *((200, 100) if runlocal else ())),
        network=Network(made, num_layers=2, engine=engine),
        optimizer=Optimizer(1e-2, "adam", "cosine", warmup=0.05),
        steps=20 if runlocal else 1500,
        batch_size=32,
        eval_every=10 if runlocal else 250,
    )
