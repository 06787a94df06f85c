"""Results of the configs are near those in docs/studies.md; slow, run by `make accuracy`."""

import pytest

from jrnn import config
from jrnn.train import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("spec", "bound", "seconds"),
    [
        ("configs/digits.py", 0.94, 90),
        ("configs/digits.py:cell=gru", 0.92, 90),
        ("configs/digits.py:order=row", 0.95, 90),
        ("configs/digits.py:order=row,cell=gru", 0.95, 90),
        ("configs/digits.py:order=row,cell=elman", 0.93, 90),
        ("configs/adding.py", 0.01, 600),
        ("configs/adding.py:cell=gru", 0.01, 600),
        ("configs/long_sequences.py", 0.01, 600),
        ("configs/text.py", 2.2, 300),
        ("configs/tracking.py", 0.99, 90),
    ],
)
def test_result_of_config_is_within_its_bound(spec, bound, seconds, tmp_path):
    """The bound of an accuracy is a lower one; the bound of another metric is an upper one."""
    experiment = config.load(spec)
    data = experiment.task.load()
    result = train(experiment, data, tmp_path)
    if data.metric == "accuracy":
        assert result.test["metric"] >= bound
    else:
        assert result.test["metric"] < bound
    assert result.seconds < seconds
