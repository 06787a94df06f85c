"""The search space of sweeps: grids, ranges, random samples, and names."""

import numpy as np
import pytest

import jrnn
from jrnn.config import ConfigFile
from jrnn.sweep.search_space import Trial, make_trials

CONFIG = "configs/digits.py"


def trials(spec, *args, **options) -> list[Trial]:
    return make_trials(ConfigFile.parse(spec), *args, **options)


def values(over, **options):
    return [t.values for t in trials(CONFIG, [], over, **options)]


def test_grid_has_all_combinations_and_last_axis_changes_fastest():
    grid = trials(CONFIG, ["--steps", "7"], ["seed=0:2", "optimizer.learning-rate=0.1,0.2"])
    assert [(t.experiment.seed, t.experiment.optimizer.learning_rate) for t in grid] == [
        (0, 0.1),
        (0, 0.2),
        (1, 0.1),
        (1, 0.2),
    ]
    assert {t.experiment.steps for t in grid} == {7}
    assert grid[1].values == {"seed": "0", "optimizer.learning_rate": "0.2"}


def test_ranges_are_evenly_spaced_on_their_scale():
    rates = [
        float(v["optimizer.learning_rate"])
        for v in values(["optimizer.learning_rate=1e-4:1e-1:log4"])
    ]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert [v["network.dropout"] for v in values(["network.dropout=0:0.5:lin3"])] == [
        "0.0",
        "0.25",
        "0.5",
    ]
    assert [v["seed"] for v in values(["seed=3:6"])] == ["3", "4", "5"]


def test_names_can_be_fields_or_config_arguments():
    over = ["cell=gru,elman", "hidden=4,5", "order=row", "network.num_layers=2"]
    networks = [t.experiment.network for t in trials(CONFIG, [], over)]
    assert [n.cell for n in networks] == [
        jrnn.GRU(4),
        jrnn.GRU(5),
        jrnn.Elman(4),
        jrnn.Elman(5),
    ]
    assert {n.num_layers for n in networks} == {2}
    with_arguments = trials(f"{CONFIG}:cell=gru,hidden=9", [], ["cell=lstm", "seed=5"])
    assert with_arguments[0].experiment.network.cell == jrnn.LSTM(9)


def test_random_values_are_reproducible_and_uniform_on_their_scale():
    over = ["optimizer.learning_rate=1e-4:1:log", "network.dropout=0.2:0.4:lin", "seed=0:3"]
    samples = values(over, random=400, draw_seed=1)
    assert samples == values(over, random=400, draw_seed=1) != values(over, random=400, draw_seed=2)
    exponents = np.log10([float(v["optimizer.learning_rate"]) for v in samples])
    assert -4 <= exponents.min() and exponents.max() <= 0 and abs(exponents.mean() + 2) < 0.2
    rates = np.array([float(v["network.dropout"]) for v in samples])
    assert 0.2 <= rates.min() and rates.max() <= 0.4 and abs(rates.mean() - 0.3) < 0.01
    assert {v["seed"] for v in samples} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "--over must be given at least once"),
        (["seed"], "--over must be NAME=VALUES"),
        (["=1"], "--over must be NAME=VALUES"),
        (["seed=5:5"], "a range must not be empty"),
        (["seed=4:0"], "a range must not be empty, got 'seed=4:0'; write"),
        (["seed=a:b"], "a range must have the form FIRST:LAST with ints"),
        (["optimizer.learning_rate=1:2:sin3"], "a range must have the form FIRST:LAST"),
        (["optimizer.learning_rate=0:1:log3"], "positive on a log scale"),
        (["optimizer.learning_rate=1:inf:lin3"], "must be finite"),
        (["optimizer.learning_rate=1e-4:1e-2:log"], "use random trials, as in --random"),
        (["seed=1", "seed=2"], "got seed more than once"),
        (
            ["optimizer.algorithm=adamw", "optimizer.learning_rate=-1"],
            "must be a finite number above 0, got -1.0",
        ),
        (["sed=1"], "must name a field of the experiment or an argument .*did you mean 'seed'"),
    ],
)
def test_invalid_axes_raise(over, message):
    with pytest.raises(ValueError, match=message):
        trials(CONFIG, [], over)


@pytest.mark.parametrize(
    "over",
    [
        "seed=x",
        "seed=1,,2",
        "optimizer.lr=1",
        "optimizer.algorithm=adm",
        "optimizer.algorithm=sgd",  # does not support the weight decay of the config
    ],
)
def test_invalid_field_or_value_raises(over):
    with pytest.raises(ValueError):
        trials(CONFIG, [], [over])
