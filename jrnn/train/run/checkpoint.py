"""Checkpoints, written atomically by orbax and verified by checksums when they are read."""

import errno
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jrnn.dtypes import is_prng_key
from jrnn.files import WriteError
from jrnn.messages import error_line, format_message

log = logging.getLogger("jrnn")

MAX_TO_KEEP = 2
"""Number of checkpoints to keep; an older one is read if the newest is damaged."""
TRANSIENT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)
"""Errors of the operating system that do not mean that a checkpoint is damaged."""
METADATA_BYTES = 2**20
"""Estimated size in bytes of a checkpoint without its arrays and its record."""
MAX_RECORD_BYTES = 2**28
"""Maximum size in bytes of the file of a record."""
STEP = re.compile(r"[0-9]{1,10}")
"""The name of the folder of a checkpoint."""
MAX_READS = 5
"""Maximum number of attempts to read, while another process saves and removes checkpoints."""
PLAIN_PATH = re.compile(r"/(?!(gs|s3|az|hf)/)[\w./ ~@+,=-]*")
"""Paths that orbax uses unchanged: it treats others as patterns or as addresses of a cloud."""


OPTIMIZER_PATH = "['opt_state']"
"""The beginning of the paths of the arrays of an optimizer."""


def list_steps(folder: Path) -> list[int]:
    """Returns the steps in a folder `checkpoints` that have a complete checkpoint, damaged or not.

    Raises:
      OSError: the folder cannot be read.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if STEP.fullmatch(name))


class CheckpointError(OSError):
    """Raised when a checkpoint cannot be written, or no checkpoint can be read."""


class CheckpointWriteError(CheckpointError, WriteError):
    """Raised when a checkpoint cannot be written; earlier ones are intact."""


class NetworkMismatch(CheckpointError):
    """Raised when a checkpoint is of another network or optimizer than the one to restore."""


class IncompatibleVersion(CheckpointError):
    """Raised when a checkpoint was saved by another version of jrnn."""


class Checkpoint(NamedTuple):
    """The complete state of a run.

    Attributes:
      step: number of training steps so far.
      arrays: pytrees of arrays, by name: "state" with the fields of `TrainState`, and "best" with
        those of the best `Weights`.
      record: JSON values, by name; see `Record`.
    """

    step: int
    arrays: dict[str, Any]
    record: dict[str, Any]


class Checkpointer:
    """Reads and writes the checkpoints in a folder."""

    def __init__(self, folder: Path, *, writing: bool = False):
        """Opens the folder.

        Args:
          folder: the folder `checkpoints` in the folder of a run.
          writing: whether to open the folder for writing. This creates it if it does not exist, and
            removes incomplete checkpoints of a run that was killed.

        Raises:
          CheckpointError: the folder cannot be opened or written to.
        """
        self._folder = folder.absolute()
        self._alias: tempfile.TemporaryDirectory[str] | None = None
        process = jax.process_index()  # only this process reads and writes, without barriers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(MAX_TO_KEEP),
            cleanup_tmp_directories=writing,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}
            ),
        )
        try:
            if writing:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._plain_path(), options=options)
        except Exception as error:
            self._remove_alias()
            action = "written to" if writing else "opened"
            raise (CheckpointWriteError if writing else CheckpointError)(
                f"train: {folder} cannot be {action}: {_describe_error(error)}; check that the "
                "folder exists, and its permissions"
            ) from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the background.

        Raises:
          CheckpointError: this or the previous checkpoint could not be written.
        """
        arrays = {name: to_numpy(tree) for name, tree in checkpoint.arrays.items()}
        args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        content = {
            "step": checkpoint.step,
            "record": checkpoint.record,
            "kinds": leaf_specs(checkpoint.arrays),
        }
        saved = {
            **content,
            "checksum": _checksum_of_json(content),
            "checksums": compute_checksums(arrays),
        }
        args["record"] = ocp.args.JsonSave(saved)
        try:
            self._manager.wait_until_finished()
            self._check_disk_space(arrays, saved)
            self._manager.save(checkpoint.step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_error(error) from error

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, damaged or not."""
        return sorted(self._manager.all_steps())

    def read_newest(self, like: dict[str, Any]) -> Checkpoint | None:
        """Reads the newest checkpoint that is not damaged, and logs a warning for each damaged one.

        Args:
          like: pytrees with the expected shapes and dtypes, by name; pytrees with other names are
            not read.

        Returns:
          The checkpoint, or None if the folder has none.

        Raises:
          NetworkMismatch: paths, shapes or dtypes differ from those of `like`.
          IncompatibleVersion: an earlier version of jrnn saved the checkpoint.
          CheckpointError: all checkpoints are damaged, or an error of the operating system, such as
            missing permissions, prevents reading.
        """
        steps: list[int] = []
        for _ in range(MAX_READS):
            if steps == (steps := self.steps()):
                break
            for step in reversed(steps):
                if (checkpoint := self._try_to_read(step, like)) is not None:
                    return checkpoint
            # Another process may have saved newer checkpoints and removed these.
            self._manager.reload()
        if steps:
            raise CheckpointError(
                f"train: no checkpoint in {self._folder} can be read; those of steps {steps} are "
                "damaged, or of another network or version of jrnn; restore the folder from a "
                "copy, or start a new run"
            )
        return None

    def verify(self, step: int, like: dict[str, Any]) -> None:
        """Reads a checkpoint, and compares its shapes, dtypes and checksums.

        Args:
          step: the step of the checkpoint.
          like: as for `read_newest`.

        Raises:
          CheckpointError: the checkpoint cannot be read.
        """
        try:
            self._load(step, like)
        except Exception as error:
            raise CheckpointError(
                f"train: the checkpoint of step {step} was written to {self._folder}, but cannot "
                f"be read: {_describe_error(error)}; use another folder or file system"
            ) from error

    def move_damaged(self, after: int) -> None:
        """Moves all checkpoints after step `after` to the folder `damaged`.

        They are damaged if `after` is the step of the newest intact checkpoint.
        """
        for step in [step for step in self.steps() if step > after]:
            target = self._folder.parent / "damaged" / str(step)
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            (self._folder / str(step)).rename(target)
        self._manager.reload()

    def close(self) -> None:
        """Waits until all checkpoints are written, and closes the folder.

        Raises:
          CheckpointError: a checkpoint could not be written.
        """
        try:
            self._manager.close()
        except Exception as error:
            raise self._write_error(error) from error
        finally:
            self._remove_alias()

    def _plain_path(self) -> Path:
        """Returns a path of the folder for orbax: a temporary link if its own path is not plain."""
        if PLAIN_PATH.fullmatch(str(self._folder)):
            return self._folder
        self._alias = tempfile.TemporaryDirectory(prefix="jrnn-", ignore_cleanup_errors=True)
        link = Path(self._alias.name, "checkpoints")
        link.symlink_to(self._folder, target_is_directory=True)
        return link

    def _remove_alias(self) -> None:
        if self._alias is not None:
            self._alias.cleanup()

    def _try_to_read(self, step: int, like: dict[str, Any]) -> Checkpoint | None:
        """Reads a checkpoint; logs a warning and returns None if it is damaged."""
        try:
            return self._read(step, like)
        except (MemoryError, NetworkMismatch, IncompatibleVersion):
            raise
        except Exception as error:  # corrupted bytes may raise any exception
            if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
                raise CheckpointError(
                    f"train: {self._folder} cannot be read: {error}; fix this, and try again"
                ) from error
            if (self._folder / str(step)).is_dir():  # else another process has removed it
                log.warning("checkpoint of step %d is damaged: %s", step, _describe_error(error))
            return None

    def _read(self, step: int, like: dict[str, Any]) -> Checkpoint:
        arrays, record = self._load(step, like)
        return Checkpoint(step, from_numpy(arrays, like), record)

    def _load(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads and checks the arrays, as NumPy arrays, and the record of a checkpoint."""
        for path in (self._folder / str(step) / "record").iterdir():
            if path.stat().st_size > MAX_RECORD_BYTES:
                raise ValueError(f"the record must have at most {MAX_RECORD_BYTES} bytes")
        abstract = {name: abstract_numpy(tree) for name, tree in like.items()}
        args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        json_args: Any = ocp.args.JsonRestore()
        saved = self._manager.restore(step, args=ocp.args.Composite(record=json_args))["record"]
        names = [name for name in ("step", "record", "kinds") if name in saved]
        content = {name: saved[name] for name in names}
        if _checksum_of_json(content) != saved["checksum"]:
            raise ValueError("the record does not match its checksum")
        if "step" not in saved:
            raise IncompatibleVersion(
                f"train: {self._folder} was saved by an earlier version of jrnn; resume the run "
                "with that version, or start a new one"
            )
        if saved["step"] != step:
            raise ValueError(f"it was saved at step {saved['step']}, and copied or renamed")
        self._check_leaf_specs(saved["kinds"], leaf_specs(like))
        for name, tree in abstract.items():
            _check_chunks(self._manager.directory / str(step) / name, tree)
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        arrays = {name: restored[name] for name in like}
        if leaf_specs(arrays) != leaf_specs(abstract):
            raise ValueError("the arrays do not have the shapes and dtypes that were written")
        for name, sums in compute_checksums(arrays).items():
            if sums != saved["checksums"][name]:
                raise ValueError(f"the arrays of {name} do not match their checksums")
        return arrays, saved["record"]

    def _check_leaf_specs(
        self, saved: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]
    ) -> None:
        """Raises NetworkMismatch for the first array whose path, shape or dtype differs.

        The state of an optimizer depends on the network, so its arrays are compared last.
        """
        if missing := sorted(expected.keys() - saved.keys()):
            raise NetworkMismatch(
                f"train: {self._folder} must have the arrays {missing[0]!r}, got "
                f"{', '.join(saved)}; read it with the code that saved it, or start a new run"
            )
        differing = [
            (path.startswith(OPTIMIZER_PATH), name, path)
            for name, leaves in expected.items()
            for path in leaves.keys() | saved[name].keys()
            if saved[name].get(path) != leaves.get(path)
        ]
        if differing:
            is_optimizer, name, path = min(differing)
            old, new = (specs[name].get(path, "missing") for specs in (saved, expected))
            raise NetworkMismatch(
                f"train: {self._folder} has a run of another "
                f"{'optimizer' if is_optimizer else 'network'}: {name}{path} is {old} in the "
                f"checkpoint, and {new} in this config; use the config of the run, or start a new "
                "run"
            )

    def _check_disk_space(self, arrays: dict[str, Any], record: dict[str, Any]) -> None:
        """Raises OSError if the disk is too full; orbax would write an incomplete checkpoint."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        needed += len(json.dumps(record)) + METADATA_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are needed")

    def _write_error(self, error: Exception) -> CheckpointWriteError:
        steps = self.steps()
        intact = f"those of steps {steps} are intact" if steps else "there is no earlier one"
        return CheckpointWriteError(
            f"train: a checkpoint could not be written to {self._folder}: "
            f"{_describe_error(error)}; {intact}; free disk space or repair the folder, and resume "
            "the run."
        )


def _check_chunks(folder: Any, like: Any) -> None:
    """Raises ValueError if a chunk of an array is larger than the array, which bounds the memory.

    Args:
      folder: the folder of a pytree in a checkpoint, as a path of orbax.
      like: the pytree with the expected shapes.
    """
    metadata = ocp.StandardCheckpointHandler().metadata(folder)
    leaves: Any = [leaf for leaf in jax.tree.leaves(metadata.tree) if leaf is not None]
    sizes = sorted(np.prod([*leaf.storage.chunk_shape, 1.0]) for leaf in leaves)
    expected = sorted(max(leaf.size, 1) for leaf in jax.tree.leaves(like))
    if len(sizes) != len(expected) or any(a > b for a, b in zip(sizes, expected, strict=True)):
        raise ValueError("the arrays have chunks of other sizes than were written")


def compute_checksums(arrays: dict[str, Any]) -> dict[str, list[int]]:
    """Returns the CRC-32 of every leaf, by the name of its pytree."""
    checksum = lambda leaf: zlib.crc32(np.ascontiguousarray(leaf).tobytes())
    return {name: [checksum(leaf) for leaf in jax.tree.leaves(t)] for name, t in arrays.items()}


def to_numpy(tree: Any) -> Any:
    """Converts arrays to NumPy, and random keys to NumPy arrays of their key data."""
    convert = lambda leaf: np.asarray(jax.random.key_data(leaf) if is_prng_key(leaf) else leaf)
    return jax.tree.map(convert, tree)


def abstract_numpy(tree: Any) -> Any:
    """Returns arrays with the shapes and dtypes of the result of `to_numpy`.

    Each is a single zero broadcast to the shape, which takes almost no memory.
    """

    def zeros(leaf: Any) -> np.ndarray:
        if is_prng_key(leaf):
            leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    return jax.tree.map(zeros, tree)


def from_numpy(arrays: Any, like: Any) -> Any:
    """Inverts `to_numpy`; a leaf becomes a random key if it is one in `like`.

    Args:
      arrays: the result of `to_numpy`.
      like: arrays or `jax.ShapeDtypeStruct`s in the same structure, whose keys have the expected
        PRNG implementations.
    """

    def convert(array: np.ndarray, leaf: Any) -> jax.Array:
        if not is_prng_key(leaf):
            return jnp.asarray(array)
        # `key_impl` does not accept a `jax.ShapeDtypeStruct`.
        implementation = jax.random.key_impl(jnp.empty(0, leaf.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=implementation)

    return jax.tree.map(convert, arrays, like)


def _checksum_of_json(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def leaf_specs(arrays: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the dtype and shape of every leaf, by the name of its pytree and by its path."""
    spec = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    return {
        name: {
            jax.tree_util.keystr(path): spec(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for name, tree in arrays.items()
    }


def _describe_error(error: Exception) -> str:
    """Returns the error message of the operating system if there is one, else the first line."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        if os.strerror(number) in text:
            return os.strerror(number)
    return format_message(error_line(error))
