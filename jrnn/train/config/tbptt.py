"""Options of truncated backpropagation through time."""

from dataclasses import dataclass

from jrnn import checks
from jrnn.fields import OptionFields
from jrnn.tasks.task import Data, Split
from jrnn.train.data.windows import Window


@dataclass(frozen=True)
class TBPTT(OptionFields):
    """Updates the parameters every k1 time steps, with gradients through the last k2 time steps.

    A stream of time steps 1, 2, ... is cut into windows w = 0, 1, ... of k1 time steps. Each window
    is one training step, whose last time step is e = (w + 1)·k1::

        loss:      of time steps e - min(k1, k2) + 1, ..., e
        gradient:  through time steps e - k2 + 1, ..., e
        carry:     computed by the previous training steps; no gradient flows through it

    The loss is 0 if none of its time steps is valid. A stream is one example of the task. If the
    examples of the task are contiguous, as those of `Text`, they are concatenated and cut into as
    many streams as a batch has rows. Each stream begins with the initial carry of the cell.
    Evaluations include all time steps of all streams; they also pass the carry between windows.

    Args:
      k1: number of time steps between two updates, which must divide the length of an example; None
        means the length of an example.
      k2: number of time steps that gradients flow back through; None means k1.

    Raises:
      ValueError: k1 or k2 is not a positive int.

    References:
      Williams and Peng, 1990, An efficient gradient-based algorithm for on-line training of
      recurrent network trajectories. Their BPTT(h; h') is this algorithm with h = k2, h' = k1.
    """

    k1: int | None = None
    k2: int | None = None

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            if getattr(self, name) is not None:
                checks.positive_int("TBPTT", name, getattr(self, name))

    def window(self, data: Data) -> Window:
        """Returns k1 and k2, with None replaced by the defaults for the data of a task.

        Raises:
          ValueError: k1 does not divide the length of an example, the task has one target per
            sequence, or its examples are contiguous and have lengths.
        """
        if not data.target.endswith("per_step"):
            raise ValueError(
                "TBPTT: the task must have a target at each time step, got "
                f"target={data.target!r}; remove tbptt"
            )
        k1 = data.train.xs.shape[1] if self.k1 is None else self.k1
        for name in ("train", "validation", "test"):
            split: Split = getattr(data, name)
            length = split.xs.shape[1]
            if k1 == 0 or length % k1:
                raise ValueError(
                    f"TBPTT: k1 must divide the {length} time steps of a {name} example, got {k1}; "
                    "choose a divisor"
                )
            if data.contiguous and split.lengths is not None:
                raise ValueError(
                    "TBPTT: contiguous examples must not have lengths; remove tbptt, or set "
                    "contiguous=False"
                )
        return Window(k1, k1 if self.k2 is None else self.k2)
