"""Character-level language modeling of a text file, or of the help topics of Python.

    jrnn train configs/text.py
    jrnn train configs/text.py:path=my.txt,cell=gru,hidden=512
    jrnn sample RUN --prompt "The "

Training uses truncated backpropagation through time: the text is split into 32 streams, one for
each row of a batch, and the carry is passed from each window of 128 characters to the next.
"""

from jrnn.config import make_cell
from jrnn.tasks import Text
from jrnn.train import TBPTT, Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", path: str | None = None, hidden: int = 256, runlocal: bool = False
) -> Experiment:
    """Returns the experiment of this config.

    Args:
      cell: name of the cell, which transforms may precede, as in "zoneout+lstm".
      path: path of a UTF-8 file; None means the help topics of Python, 0.46 MB of English.
      hidden: number of hidden units.
      runlocal: whether to train for a few steps only, as a smoke test.
    """
    return Experiment(
        task=Text(path),
        network=Network(make_cell(cell, hidden), dropout=0.1),
        tbptt=TBPTT(),
        optimizer=Optimizer(4e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.01),
        steps=10 if runlocal else 800,
        eval_every=5 if runlocal else 100,
    )
