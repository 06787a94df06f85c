"""Your own sequences, from an .npz file with arrays xs, ys and optionally lengths.

jrnn train configs/arrays.py:path=mine.npz,kind=classification
jrnn train configs/arrays.py:path=mine.npz,kind=sequence_regression,cell=gru
"""

from jrnn.config import make_cell
from jrnn.tasks import Arrays
from jrnn.tasks.arrays import Kind
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    path: str = "data.npz",
    kind: Kind = "classification",
    cell: str = "lstm",
    hidden: int = 64,
    runlocal: bool = False,
) -> Experiment:
    """Returns the experiment of this config.

    Args:
      path: path of the .npz file.
      kind: kind of targets: "classification" or "regression" for one target per sequence,
        "sequence_classification" or "sequence_regression" for one target per step.
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    return Experiment(
        task=Arrays(path, kind),
        network=Network(make_cell(cell, hidden), dropout=0.1),
        optimizer=Optimizer(3e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.01),
        steps=40 if runlocal else 2000,
        eval_every=20 if runlocal else 100,
    )
