"""Classification of handwritten digits, pixel by pixel or row by row.

    jrnn train configs/digits.py                         # LSTM, pixel by pixel
    jrnn train configs/digits.py:cell=gru
    jrnn train configs/digits.py:order=row,cell=elman

The data are the 1797 images of 8 by 8 pixels in scikit-learn. The task is from Le, Jaitly and
Hinton, 2015, A simple way to initialize recurrent networks of rectified linear units, with MNIST.
"""

from jrnn.config import make_cell
from jrnn.tasks import Digits
from jrnn.tasks.digits import Order
from jrnn.train import Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", order: Order = "pixel", hidden: int = 96, runlocal: bool = False
) -> Experiment:
    """Returns the experiment of this config.

    Args:
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      order: "pixel", "row" or "permuted", which is "pixel" in a fixed random order.
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    return Experiment(
        task=Digits(order=order),
        network=Network(make_cell(cell, hidden), dropout=0.2),
        optimizer=Optimizer(5e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.1),
        steps=40 if runlocal else 2400,
        eval_every=20 if runlocal else 200,
    )
