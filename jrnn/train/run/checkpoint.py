"""Checkpointer of a run by orbax: written whole or not at all, and checked when they are read."""

import errno
import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

log = logging.getLogger("jrnn")

KEPT = 2
"""The newest checkpoints that are kept: the second is for when the first is damaged."""
PASSING = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)
"""Errors of reading that say nothing of what is on the disk."""
SLACK = 2**20
"""Bytes beside the arrays that a checkpoint may take."""


class CheckpointError(OSError):
    """A checkpoint could not be written, or none could be read; says what to do."""


class OtherNetwork(CheckpointError):
    """A checkpoint is of another network than that which is to be restored."""


class Checkpoint(NamedTuple):
    """All that moves in a run.

    Attributes:
      step: training steps done.
      arrays: by name, trees of arrays.
      record: by name, what JSON holds.
    """

    step: int
    arrays: dict[str, Any]
    record: dict[str, Any]


class Checkpointer:
    """The folder of a run's checkpoints."""

    def __init__(self, folder: Path, *, writing: bool = False):
        """Opens the folder.

        Args:
          folder: the run's folder `checkpoints`.
          writing: whether anything is to be saved; the folder is then made if need be, and what a
            killed run left half written is removed.

        Raises:
          CheckpointError: it cannot be opened, or not be written to.
        """
        self._folder = folder.absolute()
        alone = jax.process_index()  # of several processes no other one comes here
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(KEPT),
            cleanup_tmp_directories=writing,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=alone, active_processes={alone}
            ),
        )
        try:
            if writing:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except Exception as error:
            doing = "written to" if writing else "opened"
            raise CheckpointError(f"{folder} cannot be {doing}: {_cause(error)}") from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the background.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        arrays = {name: to_numpy(tree) for name, tree in checkpoint.arrays.items()}
        args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        described = {"record": checkpoint.record, "kinds": kinds(checkpoint.arrays)}
        sealed = {
            **described,
            "checksum": _checksum_of_json(described),
            "checksums": checksums(arrays),
        }
        args["record"] = ocp.args.JsonSave(sealed)
        try:
            self._manager.wait_until_finished()
            self._check_room(arrays)
            self._manager.save(checkpoint.step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Waits for all writing.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, whether damaged or not."""
        return sorted(self._manager.all_steps())

    def newest(self, like: dict[str, Any]) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; of a damaged one it says so in the log.

        Args:
          like: trees of the shapes and dtypes that are expected, by name; only these are read.

        Returns:
          The checkpoint, or None where there is none at all.

        Raises:
          CheckpointError: all of them are damaged, or none can be read now.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step, like)
            except (MemoryError, OtherNetwork):
                raise
            except Exception as error:  # bytes that have changed make any error at all
                if isinstance(error, OSError) and error.errno in PASSING:
                    raise CheckpointError(f"{self._folder} cannot be read now: {error}") from error
                log.warning("checkpoint of step %d is damaged: %s", step, _cause(error))
        if steps:
            raise CheckpointError(
                f"{self._folder}: no checkpoint can be read; those of steps {steps} are damaged, "
                "or of another network or version of jrnn. Restore the folder from a copy, or "
                "train anew"
            )
        return None

    def quarantine(self, after: int) -> None:
        """Moves the checkpoints after a step, which are damaged, into the folder `damaged`."""
        for step in [step for step in self.steps() if step > after]:
            aside = self._folder.parent / "damaged" / str(step)
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                shutil.rmtree(aside)
            (self._folder / str(step)).rename(aside)
        self._manager.reload()

    def close(self) -> None:
        """Waits for all writing and lets go of the folder."""
        self._manager.close()

    def _read(self, step: int, like: dict[str, Any]) -> Checkpoint:
        shapes = {name: shapes_of(tree) for name, tree in like.items()}
        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        json_args: Any = ocp.args.JsonRestore()
        sealed = self._manager.restore(step, args=ocp.args.Composite(record=json_args))["record"]
        described = {name: sealed[name] for name in ("record", "kinds")}
        if _checksum_of_json(described) != sealed["checksum"]:
            raise ValueError("its record has changed since it was written")
        self._check_kinds(sealed["kinds"], kinds(like))
        found = self._manager.restore(step, args=ocp.args.Composite(**args))
        arrays = {name: found[name] for name in like}
        if kinds(arrays) != kinds(shapes):
            raise ValueError("its arrays are not of the kinds that were written")
        for name, sums in checksums(arrays).items():
            if sums != sealed["checksums"][name]:
                raise ValueError(f"the numbers of its {name} have changed since they were written")
        return Checkpoint(step, restore_keys(arrays, like), sealed["record"])

    def _check_kinds(self, found: dict[str, dict[str, str]], wanted: dict[str, dict[str, str]]):
        """Refuses arrays of other names, shapes or dtypes, and names the first of them."""
        for name, leaves in wanted.items():
            for leaf in sorted(leaves.keys() | found[name].keys()):
                was, now = found[name].get(leaf, "no such array"), leaves.get(leaf, "none")
                if was != now:
                    raise OtherNetwork(
                        f"{self._folder} holds a run of another network: {name}{leaf} is {was} "
                        f"there, and {now} by this config. Use the config that the run was trained "
                        "by, or train anew"
                    )

    def _check_room(self, arrays: dict[str, Any]) -> None:
        """Refuses what cannot fit, before orbax has half of it on the disk."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + SLACK
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are needed")

    def _failure(self, error: Exception) -> CheckpointError:
        kept = self.steps()
        whole = f"those of steps {kept} are whole" if kept else "there is none before it"
        return CheckpointError(
            f"{self._folder}: a checkpoint could not be written, {whole}. Make room or mend the "
            f"folder, and go on with --resume. The cause: {_cause(error)}"
        )


def checksums(arrays: dict[str, Any]) -> dict[str, list[int]]:
    """The CRC-32 of every leaf, by the name of its tree."""
    checksum = lambda leaf: zlib.crc32(np.ascontiguousarray(leaf).tobytes())
    return {name: [checksum(leaf) for leaf in jax.tree.leaves(t)] for name, t in arrays.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_numpy(tree: Any) -> Any:
    """The arrays of NumPy that are written, which no number of devices or processes changes."""
    plain = lambda leaf: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return jax.tree.map(plain, tree)


def shapes_of(tree: Any) -> Any:
    """Arrays as `to_numpy` makes them, each in the memory of one number."""

    def of(leaf: Any) -> np.ndarray:
        if _is_key(leaf):
            leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    return jax.tree.map(of, tree)


def restore_keys(arrays: Any, like: Any) -> Any:
    """What `to_numpy` was made of, from the keys among leaves of the same kinds."""
    wrap = lambda a, leaf: jax.random.wrap_key_data(a) if _is_key(leaf) else jnp.asarray(a)
    return jax.tree.map(wrap, arrays, like)


def _checksum_of_json(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def kinds(arrays: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The dtype and shape of every leaf by its path, by the name of its tree."""
    describe = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    return {
        name: {
            jax.tree_util.keystr(path): describe(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name, tree in arrays.items()
    }


def _cause(error: Exception) -> str:
    """The system's words for it where they are in the message, else its first line."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in text:
            return os.strerror(number)
    return (text.splitlines() or [type(error).__name__])[0][:300]
