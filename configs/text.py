"""The next character of a text: of your own, or the reference texts of the Python library.

It is read as 32 streams, in windows of 128 characters; the carry goes on from window to window.

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
    """The experiment.

    Args:
      cell: name of the cell.
      path: a UTF-8 file; None takes the text that comes with Python, 0.46 MB of English.
      hidden: hidden units.
      runlocal: a few steps, to see that all of it runs.
    """
    return Experiment(
        task=Text(path),
        network=Network(make_cell(cell, hidden), dropout=0.1),
        tbptt=TBPTT(),
        optimizer=Optimizer(4e-3, "adamw", "cosine", warmup=0.1, weight_decay=0.01),
        steps=10 if runlocal else 800,
        eval_every=5 if runlocal else 100,
    )
