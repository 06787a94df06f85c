"""Checkpoints in folders with unusual names, and checkpoints that are invalid or replaced."""

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from flax import nnx

from jrnn.train import Checkpoint, Checkpointer, CheckpointError, fit
from jrnn.train.run.trainer import Trainer

NAMES = {
    "brackets": b"p[1]",
    "backslash": b"back\\slash",
    "cloud address": b"gs:",
    "not UTF-8": b"latin\xff",
    "pattern": b"a*b?{c}",
    "colon": b"x:y",
    "dash": b"-x",
    "spaces": b" a  b ",
    "newline": b"a\nb",
    "percent": b"%41",
    "long": b"n" * 250,
    "home": b"~",
    "not ASCII": "größe".encode(),
}
ARRAYS = {"state": {"w": jnp.arange(3.0)}}


@pytest.fixture(params=NAMES)
def folder(request, tmp_path, monkeypatch):
    """A folder with each of the unusual names; temporary files are next to it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = tmp_path / os.fsdecode(NAMES[request.param])
    path.mkdir()
    return path


def read(folder):
    checkpoints = Checkpointer(folder / "checkpoints")
    try:
        return checkpoints.read_newest(ARRAYS)
    finally:
        checkpoints.close()


def test_checkpoints_in_a_folder_of_any_name_are_read(folder, tmp_path):
    checkpoints = Checkpointer(folder / "checkpoints", writing=True)
    for step in range(3):
        checkpoints.save(Checkpoint(step, ARRAYS, {}))
        checkpoints.wait()
        checkpoints.verify(step, ARRAYS)
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()
    newest = read(folder)
    assert newest.step == 2
    np.testing.assert_array_equal(newest.arrays["state"]["w"], [0, 1, 2])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2"]
    assert [path for path in tmp_path.iterdir() if path != folder] == []


def test_run_in_a_folder_with_brackets_is_resumed(tmp_path):
    xs = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    loss = lambda model, batch: ((model(batch) - 3 * batch) ** 2).mean()
    options = {"loss": loss, "optimizer": optax.sgd(0.1), "batch_size": 4, "progress": False}
    train = lambda **more: fit(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), xs, **options, **more)
    folder = tmp_path / "p[1]"
    train(steps=3, run_dir=folder)
    resumed = train(steps=6, run_dir=folder, resume=True)
    expected = train(steps=6)
    np.testing.assert_array_equal(resumed.model.kernel[...], expected.model.kernel[...])


def test_unreadable_first_checkpoint_ends_the_run_before_training(tmp_path, monkeypatch):
    def save_nothing(self, checkpoint):
        (self._folder / str(checkpoint.step)).mkdir()

    monkeypatch.setattr(Checkpointer, "save", save_nothing)
    xs = np.ones((4, 1), np.float32)
    monkeypatch.setattr(Trainer, "train_steps", lambda trainer: pytest.fail("it has trained"))

    with pytest.raises(CheckpointError, match="step 0 was written to .*, but cannot be read"):
        fit(
            nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
            xs,
            loss=lambda model, batch: model(batch).mean(),
            optimizer=optax.sgd(0.1),
            steps=2,
            batch_size=4,
            run_dir=tmp_path,
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path):
    """A folder whose subfolder `checkpoints` has the checkpoints of steps 1 and 2."""
    checkpoints = Checkpointer(tmp_path / "checkpoints", writing=True)
    for step in (1, 2):
        checkpoints.save(Checkpoint(step, ARRAYS, {}))
    checkpoints.wait()
    checkpoints.close()
    return tmp_path


def test_checkpoint_copied_to_another_step_is_refused(saved, caplog):
    shutil.copytree(saved / "checkpoints/1", saved / "checkpoints/7")
    assert read(saved).step == 2
    assert "step 7 is damaged: it was saved at step 1, and copied or renamed" in caplog.text


def test_checkpoint_of_an_earlier_version_is_not_reported_as_damage(saved, caplog):
    record = saved / "checkpoints/2/record/metadata"
    content = json.loads(record.read_text())
    del content["step"]  # checkpoints of earlier versions do not have it
    checked = {name: content[name] for name in ("record", "kinds")}
    content["checksum"] = zlib.crc32(json.dumps(checked, sort_keys=True).encode())
    record.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="was saved by an earlier version of jrnn"):
        read(saved)
    assert "damaged" not in caplog.text


def test_missing_arrays_are_not_reported_as_damage(saved, caplog):
    checkpoints = Checkpointer(saved / "checkpoints")
    with pytest.raises(CheckpointError, match="must have the arrays 'best', got state"):
        checkpoints.read_newest({**ARRAYS, "best": {"w": jnp.ones(2)}})
    checkpoints.close()
    assert "damaged" not in caplog.text


def test_run_that_saves_checkpoints_during_a_read_is_read(saved, caplog, monkeypatch):
    """All checkpoints that the reader has listed are replaced by newer ones."""
    reader = Checkpointer(saved / "checkpoints")
    listed = reader.steps()
    writer = Checkpointer(saved / "checkpoints", writing=True)
    for step in (3, 4):
        writer.save(Checkpoint(step, ARRAYS, {}))
    writer.wait()
    writer.close()
    assert listed == [1, 2] and not Path(saved, "checkpoints/2").exists()
    assert reader.steps() == [1, 2]
    assert reader.read_newest(ARRAYS).step == 4
    reader.close()
    assert "damaged" not in caplog.text


def test_chunk_that_is_larger_than_its_array_is_refused(saved, caplog):
    """Orbax would decompress the whole chunk in memory, whatever the size of the array."""
    base = (saved / "checkpoints/2/state").as_uri() + "/"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": "w/"}}
    metadata = {"shape": [3], "chunks": [2**20], "dtype": "<f4"}
    array: Any = tensorstore.open(
        spec | {"metadata": metadata}, create=True, delete_existing=True
    ).result()
    array.write(np.arange(3, dtype=np.float32)).result()
    assert read(saved).step == 1
    assert "the arrays have chunks of other sizes than were written" in caplog.text
