"""The checkpoints of a run of several processes, of which the first alone sees the folder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jrnn.distributed import ProcessGroup
from jrnn.train.run.checkpoint import Checkpoint, Checkpointer, restore_keys, shapes_of, to_numpy


class MultiProcessCheckpointer:
    """Checkpointer that the first process of a group writes and reads, and tells the others of.

    All processes call all of it alike, with whole arrays. What cannot be written or read is raised
    in the first process.
    """

    def __init__(self, folder: Path, group: ProcessGroup):
        """Opens the folder to write to it.

        Raises:
          CheckpointError: it cannot be written to.
        """
        self._group = group
        self._own = Checkpointer(folder, writing=True) if group.is_first else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the background.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        if self._own is not None:
            self._own.save(checkpoint)

    def wait(self) -> None:
        """Waits for all writing.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        if self._own is not None:
            self._own.wait()

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, whether damaged or not."""
        return self._group.broadcast("steps", None if self._own is None else self._own.steps())

    def newest(self, like: dict[str, Any]) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; see `Checkpointer.newest`."""
        found = None if self._own is None else self._own.newest(like)
        told = self._group.broadcast(
            "checkpoint", None if found is None else [found.step, found.record]
        )
        if told is None or self._group.count == 1:
            return found
        arrays = shapes_of(like) if found is None else to_numpy(found.arrays)
        return Checkpoint(told[0], restore_keys(_broadcast(arrays), like), told[1])

    def quarantine(self, after: int) -> None:
        """Moves the checkpoints after a step, which are damaged, into the folder `damaged`."""
        if self._own is not None:
            self._own.quarantine(after)

    def close(self) -> None:
        """Waits for all writing and lets go of the folder."""
        if self._own is not None:
            self._own.close()


def broadcast_arrays(tree: Any, group: ProcessGroup) -> Any:
    """Arrays as the first process has them: others may have drawn other last bits."""
    return tree if group.count == 1 else restore_keys(_broadcast(to_numpy(tree)), tree)


def _broadcast(arrays: Any) -> Any:
    """The arrays of the first process, for which others have some of the same shapes.

    They are sent as bytes: a sum over processes would make 0 of -0.
    """
    leaves, structure = jax.tree.flatten(arrays)
    sent = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(told[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for end, leaf in zip(ends, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
