"""Trained runs for the tests of reports."""

from pathlib import Path

import numpy as np
import pytest

from jrnn.cli.main import main

SMALL = ["--batch-size", "4", "--network.cell.hidden-size", "3"]
SCRIPT = "<script>window.executed=1</script>"
"""The name of a column, which must be shown as text."""
FOLDER = "<img src=x onerror=window.executed=2>"
"""The name of the folder of a run."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a run on a table, a run on a text, a sweep, and their data."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    loads = 30_000 + 5000 * np.sin(np.arange(260) / 4) + rng.normal(0, 100, 260)
    rows = "".join(f"{load:.1f},{k % 7}\n" for k, load in enumerate(loads))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("table.csv").write_text(f"{SCRIPT},day\n{rows}")
        Path("text.txt").write_text("<b>the cat</b> & the dog. " * 40)
        options = ["--steps", "6", "--eval-every", "2", *SMALL]
        spec = "configs/table.py:path=table.csv"
        main(["train", spec, "--run-dir", FOLDER, *options, "--task.window", "16"])
        spec = "configs/text.py:path=text.txt"
        main(["train", spec, "--run-dir", "text", *options, "--task.window", "16"])
        over = ["--over", "optimizer.learning-rate=1e-3,3e-2", "seed=0:2", "--keep", "2"]
        spec = "configs/digits.py:order=row"
        main(["sweep", spec, *over, "--run-dir", "sweep", *options])
    return folder


@pytest.fixture
def in_folder(trained, monkeypatch):
    """The folder of the runs, as the current folder."""
    monkeypatch.chdir(trained)
    return trained
