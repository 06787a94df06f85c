"""The adding problem with long sequences, for cells with engines that are parallel over time.

    jrnn train configs/long_sequences.py        # minGRU, engine associative
    jrnn train configs/long_sequences.py:cell=minlstm,length=4000
    jrnn train configs/long_sequences.py:cell=paragru,engine=newton

The task is from Hochreiter and Schmidhuber, 1997, Long short-term memory. Martin and Cundy, 2018,
Parallelizing linear recurrent neural nets over sequence length, train linear cells by an
associative scan. A constant prediction has a mean squared error of 0.167; minGRU reaches 0.0005 in
135 seconds on two CPU cores.
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
    """Returns the experiment of this config.

    Args:
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm". If the cell has
        the option `t_max`, and no transforms, the option is set to `length`.
      length: number of steps of a sequence.
      hidden: number of hidden units in each of the two layers.
      engine: name of the engine.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    layer = make_cell(cell, hidden)
    if "t_max" in inspect.signature(type(layer)).parameters:
        layer = make_cell(cell, hidden, t_max=length)
    return Experiment(
        task=Adding(length, *((200, 100) if runlocal else ())),
        network=Network(layer, num_layers=2, engine=engine),
        optimizer=Optimizer(1e-2, "adam", "cosine", warmup=0.05),
        steps=20 if runlocal else 1500,
        batch_size=32,
        eval_every=10 if runlocal else 250,
    )
