"""Checkpoints of a run on several processes: only the first process accesses the folder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jrnn.distributed import ProcessGroup
from jrnn.train.run.checkpoint import Checkpoint, Checkpointer, abstract_numpy, from_numpy, to_numpy


class MultiProcessCheckpointer:
    """Wraps the `Checkpointer` of the first process, which broadcasts what it reads.

    All processes must call the same methods in the same order, with unsharded arrays. Errors of
    reading and writing are raised in the first process only.
    """

    def __init__(self, folder: Path, group: ProcessGroup):
        """Opens the folder for writing.

        Raises:
          CheckpointError: the folder cannot be written to.
        """
        self._group = group
        self._checkpointer = Checkpointer(folder, writing=True) if group.is_first else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the background.

        Raises:
          CheckpointError: this or the previous checkpoint could not be written.
        """
        if self._checkpointer is not None:
            self._checkpointer.save(checkpoint)

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, damaged or not."""
        return self._group.broadcast(
            "steps", None if self._checkpointer is None else self._checkpointer.steps()
        )

    def read_newest(self, like: dict[str, Any]) -> Checkpoint | None:
        """Reads the newest checkpoint that is not damaged; see `Checkpointer.read_newest`."""
        own = None if self._checkpointer is None else self._checkpointer.read_newest(like)
        message = self._group.broadcast(
            "checkpoint", None if own is None else [own.step, own.record]
        )
        if message is None or self._group.count == 1:
            return own
        step, record = message
        arrays = abstract_numpy(like) if own is None else to_numpy(own.arrays)
        return Checkpoint(step, from_numpy(_broadcast(arrays), like), record)

    def verify(self, step: int, like: dict[str, Any]) -> None:
        """Reads and checks the checkpoint of a step; see `Checkpointer.verify`."""
        if self._checkpointer is not None:
            self._checkpointer.verify(step, like)

    def move_damaged(self, after: int) -> None:
        """Moves all checkpoints after step `after` to the folder `damaged`."""
        if self._checkpointer is not None:
            self._checkpointer.move_damaged(after)

    def close(self) -> None:
        """Waits until all checkpoints are written, and closes the folder."""
        if self._checkpointer is not None:
            self._checkpointer.close()


def broadcast_arrays(tree: Any, group: ProcessGroup) -> Any:
    """Returns the arrays of the first process, in all processes.

    The arrays that the processes pass may differ by rounding.
    """
    return tree if group.count == 1 else from_numpy(_broadcast(to_numpy(tree)), tree)


def _broadcast(arrays: Any) -> Any:
    """Returns the arrays of the first process; shapes and dtypes must agree in all processes.

    `broadcast_one_to_all` sums over processes, which turns -0.0 into 0.0. The arrays are therefore
    sent as bytes.
    """
    leaves, structure = jax.tree.flatten(arrays)
    own = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(received[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for end, leaf in zip(ends, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
