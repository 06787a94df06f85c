"""Options of truncated backpropagation through time."""

from dataclasses import dataclass

from jrnn import checks
from jrnn.tasks.task import Data, Split
from jrnn.train.data.windows import Window


@dataclass(frozen=True)
class TBPTT:
    """Updates the parameters every k1 steps, with gradients through the last k2 steps.

    ::

        window w:   loss over the steps w·k1 + 1, ..., (w + 1)·k1
                    gradient through the steps (w + 1)·k1 - max(k1, k2) + 1, ..., (w + 1)·k1
                    carry before them: from window w - 1, without gradient

    With k2 < k1 the loss counts only the last k2 steps of a window, and is 0 if none of them is
    valid. A stream is one example of the task or, for tasks with contiguous examples such as
    `Text`, all examples together, cut into as many streams as a batch has rows. A stream begins
    with the initial carry of the cell. Evaluation on validation and test data goes through all
    steps of all streams and carries the state from window to window.

    Args:
      k1: steps between two updates; None means all steps of an example. Must divide the number of
        steps of an example.
      k2: steps that gradients flow back through; None means k1.

    Raises:
      ValueError: k1 or k2 is not a positive int.

    References:
      Williams and Peng, 1990, An efficient gradient-based algorithm for on-line training of
      recurrent network trajectories. This is their BPTT(h; h') with h = k2 and h' = k1.
    """

    k1: int | None = None
    k2: int | None = None

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            if getattr(self, name) is not None:
                checks.positive_int("TBPTT", name, getattr(self, name))

    def window(self, data: Data) -> Window:
        """k1 and k2 for the data of a task.

        Raises:
          ValueError: k1 does not divide the steps of an example, the task has one target for a
            whole sequence, or its examples are contiguous and have lengths.
        """
        if not data.target.endswith("per_step"):
            raise ValueError(
                f"TBPTT: the task must have a target at each step, got target={data.target!r}; "
                "remove tbptt"
            )
        k1 = data.train.xs.shape[1] if self.k1 is None else self.k1
        for name in ("train", "validation", "test"):
            split: Split = getattr(data, name)
            steps = split.xs.shape[1]
            if k1 == 0 or steps % k1:
                raise ValueError(
                    f"TBPTT: k1 must divide the {steps} steps of a {name} example, got {k1}"
                )
            if data.contiguous and split.lengths is not None:
                raise ValueError(
                    "TBPTT: contiguous examples must not have lengths; remove tbptt, or set "
                    "contiguous=False"
                )
        return Window(k1, k1 if self.k2 is None else self.k2)
