"""Checkpointer come back bit for bit, and damaged ones are found out."""

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
            "w": jax.random.normal(key, (3, 5)),
            "half": jax.random.normal(key, (4,), jnp.bfloat16),
            "flags": jnp.array([True, False]),
        },
        "best": {"w": jax.random.normal(key, (2,))},
    }


def assert_same(got, want):
    def compare(a, b):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(compare, got, want)


def saved(folder, steps):
    checkpoints = Checkpointer(folder, writing=True)
    for step in steps:
        checkpoints.save(Checkpoint(step, arrays(step), {"best": {"loss": 1 / 3}, "step": step}))
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("two") / "checkpoints", [1, 2])


def newest(folder):
    checkpoints = Checkpointer(folder)
    try:
        return checkpoints.newest(arrays(0))
    finally:
        checkpoints.close()


def test_arrays_and_record_come_back_bit_for_bit(two):
    found = newest(two)
    assert found.step == 2
    assert found.record == {"best": {"loss": 1 / 3}, "step": 2}
    assert_same(found.arrays, arrays(2))


def test_a_part_can_be_read_alone(two):
    checkpoints = Checkpointer(two)
    found = checkpoints.newest({"best": arrays(0)["best"]})
    checkpoints.close()
    assert_same(found.arrays, {"best": arrays(2)["best"]})


def test_the_two_newest_are_kept(tmp_path):
    checkpoints = Checkpointer(saved(tmp_path, [1, 2, 5, 9]))
    assert checkpoints.steps() == [5, 9]
    checkpoints.close()


def test_an_empty_folder_has_none(tmp_path):
    assert newest(tmp_path) is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# A read that fails leaves others under way, which find the event loop of orbax closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
def test_no_damage_of_any_file_goes_unseen(damage, two, tmp_path, caplog):
    names = [path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file()]
    found_out = 0
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two, folder)
        damage(folder / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jrnn"):
            found = newest(folder)
        # What only describes the rest may be spoilt; what is read must be as it was.
        assert_same(found.arrays, arrays(found.step))
        assert found.record["step"] == found.step
        said = [r.message for r in caplog.records if r.name == "jrnn"]
        assert bool(said) == (found.step == 1)
        if said:
            assert said[0].startswith("checkpoint of step 2 is damaged: ")
            found_out += 1
    assert found_out >= 3, names
    gc.collect()


def test_numbers_that_changed_within_a_sound_file_are_seen(two, tmp_path):
    """Written anew by orbax itself, so that only our checksums can tell."""
    other = saved(tmp_path / "other", [3])
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    shutil.rmtree(folder / "2/state")
    shutil.copytree(other / "3/state", folder / "2/state")
    assert newest(folder).step == 1


def test_all_damaged_is_an_error(two, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    for path in folder.rglob("record/*"):
        path.write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"those of steps \[1, 2\] are damaged, or of another"
    ):
        newest(folder)


def test_damaged_ones_are_put_aside_and_others_go_on(two, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    checkpoints = Checkpointer(folder, writing=True)
    checkpoints.move_damaged(after=1)
    assert checkpoints.steps() == [1]
    assert (tmp_path / "damaged/2/record").is_dir()
    checkpoints.save(Checkpoint(2, arrays(7), {}))
    checkpoints.wait()
    assert_same(checkpoints.newest(arrays(0)).arrays, arrays(7))
    checkpoints.close()


def test_a_full_disk_is_said_and_harms_nothing(two, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    checkpoints = Checkpointer(folder, writing=True)
    usage = shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"steps \[1, 2\] are whole.* No space left on dev"):
        checkpoints.save(Checkpoint(3, arrays(3), {}))
    checkpoints.close()
    assert_same(newest(folder).arrays, arrays(2))
