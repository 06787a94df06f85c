"""Character-level language modeling of a text file, or of the documentation of Python.

The text is split into 32 streams, read in windows of 128 characters; the carry is passed from
window to window.

jrnn train configs/text.py
jrnn train configs/text.py:path=my.txt,cell=gru,hidden=512
jrnn sample RUN --prompt "The "
"""

from jrnn.config import make_cell
from jrnn.tasks import Text
from jrnn.train import TBPTT, Experiment, Network, Optimizer


def get_config(
    cell: str = "lstm", path: str | None = None, hidden: int = 256, runlocal: bool = False
) -> Experiment:
    """Returns the experiment.

    Args:
      cell: name of the cell.
      path: path of a UTF-8 file; None uses a text that is included in Python, 0.46 MB of English.
      hidden: number of hidden units.
      runlocal: whether to run only a few steps, as a smoke test.
    """
    return Experiment(
        task=Text(path),
        network=Network(make_cell(cell, hidden), dropout=0.1),
        tbptt=TBPTT(),
        optimizer=Optimizer(4e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.01),
        steps=10 if runlocal else 800,
        eval_every=5 if runlocal else 100,
    )
