"""Checkpoints are restored exactly, and damaged ones are detected."""

import gc
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn.train import Checkpoint, Checkpointer, CheckpointError


def arrays(seed):
    key = jax.random.key(seed)
    return {
        "state": {
            "step": jnp.int32(seed),
            "key": key,
            "rbg_key": jax.random.key(seed, impl="rbg"),
            "w": jax.random.normal(key, (3, 5)),
            "bfloat16": jax.random.normal(key, (4,), jnp.bfloat16),
            "flags": jnp.array([True, False]),
        },
        "best": {"w": jax.random.normal(key, (2,))},
    }


def assert_same(actual, expected):
    def compare(a, b):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(compare, actual, expected)


def save(folder, steps):
    """Saves a checkpoint of each step, and returns the folder."""
    checkpoints = Checkpointer(folder, writing=True)
    for step in steps:
        checkpoints.save(Checkpoint(step, arrays(step), {"best": {"loss": 1 / 3}, "step": step}))
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    return save(tmp_path_factory.mktemp("two_checkpoints") / "checkpoints", [1, 2])


def read_newest(folder):
    checkpoints = Checkpointer(folder)
    try:
        return checkpoints.read_newest(arrays(0))
    finally:
        checkpoints.close()


def test_arrays_and_record_are_restored_exactly(two_checkpoints):
    checkpoint = read_newest(two_checkpoints)
    assert checkpoint.step == 2
    assert checkpoint.record == {"best": {"loss": 1 / 3}, "step": 2}
    assert_same(checkpoint.arrays, arrays(2))


def test_one_pytree_can_be_read_alone(two_checkpoints):
    checkpoints = Checkpointer(two_checkpoints)
    checkpoint = checkpoints.read_newest({"best": arrays(0)["best"]})
    checkpoints.close()
    assert_same(checkpoint.arrays, {"best": arrays(2)["best"]})


def test_two_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpointer(save(tmp_path, [1, 2, 5, 9]))
    assert checkpoints.steps() == [5, 9]
    checkpoints.close()


def test_newest_checkpoint_of_an_empty_folder_is_none(tmp_path):
    assert read_newest(tmp_path) is None


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate_to_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# A failed read cancels other reads of orbax, which then raise in the closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip_bit, truncate_to_half, Path.unlink])
def test_damage_of_any_file_is_detected_or_has_no_effect(damage, two_checkpoints, tmp_path, caplog):
    names = [
        path.relative_to(two_checkpoints)
        for path in (two_checkpoints / "2").rglob("*")
        if path.is_file()
    ]
    num_detected = 0
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        damage(folder / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jrnn"):
            checkpoint = read_newest(folder)
        # Damage of a file that is not read has no effect.
        assert_same(checkpoint.arrays, arrays(checkpoint.step))
        assert checkpoint.record["step"] == checkpoint.step
        warnings = [r.message for r in caplog.records if r.name == "jrnn"]
        assert bool(warnings) == (checkpoint.step == 1)
        if warnings:
            assert warnings[0].startswith("checkpoint of step 2 is damaged: ")
            num_detected += 1
    assert num_detected >= 3, names
    gc.collect()  # reports the exceptions of cancelled reads during this test


def test_changed_arrays_in_valid_files_are_detected(two_checkpoints, tmp_path):
    """Orbax has written all of the files, so that only the checksums of jrnn detect the change."""
    other = save(tmp_path / "other", [3])
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    shutil.rmtree(folder / "2/state")
    shutil.copytree(other / "3/state", folder / "2/state")
    assert read_newest(folder).step == 1


def test_reading_raises_if_all_checkpoints_are_damaged(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    for path in folder.rglob("record/*"):
        path.write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"those of steps \[1, 2\] are damaged, or of another"
    ):
        read_newest(folder)


def test_damaged_checkpoints_are_moved_and_saving_continues(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    checkpoints = Checkpointer(folder, writing=True)
    checkpoints.move_damaged(after=1)
    assert checkpoints.steps() == [1]
    assert (tmp_path / "damaged/2/record").is_dir()
    checkpoints.save(Checkpoint(2, arrays(7), {}))
    checkpoints.wait()
    assert_same(checkpoints.read_newest(arrays(0)).arrays, arrays(7))
    checkpoints.close()


def test_full_disk_raises_and_keeps_checkpoints(two_checkpoints, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    checkpoints = Checkpointer(folder, writing=True)
    usage = shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        CheckpointError, match=r"No space left on device; .*steps \[1, 2\] are intact"
    ):
        checkpoints.save(Checkpoint(3, arrays(3), {}))
    checkpoints.close()
    assert_same(read_newest(folder).arrays, arrays(2))
