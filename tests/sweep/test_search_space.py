"""What sweeps go over: grids, ranges, draws, and names of fields and of arguments."""

import numpy as np
import pytest

import jrnn
from jrnn.config import ConfigFile
from jrnn.sweep.search_space import Trial, make_trials

CONFIG = "configs/digits.py"


def trials(spec, *args, **options) -> list[Trial]:
    return make_trials(ConfigFile.parse(spec), *args, **options)


def values(over, **options):
    return [m.values for m in trials(CONFIG, [], over, **options)]


def test_a_grid_is_every_combination_with_the_last_name_fastest():
    found = trials(CONFIG, ["--steps", "7"], ["seed=0:2", "optimizer.learning-rate=0.1,0.2"])
    assert [(m.experiment.seed, m.experiment.optimizer.learning_rate) for m in found] == [
        (0, 0.1),
        (0, 0.2),
        (1, 0.1),
        (1, 0.2),
    ]
    assert {m.experiment.steps for m in found} == {7}
    assert found[1].values == {"seed": "0", "optimizer.learning_rate": "0.2"}


def test_ranges_are_even_on_their_scale():
    logs = [
        float(v["optimizer.learning_rate"])
        for v in values(["optimizer.learning_rate=1e-4:1e-1:log4"])
    ]
    assert logs == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert [v["network.dropout"] for v in values(["network.dropout=0:0.5:lin3"])] == [
        "0.0",
        "0.25",
        "0.5",
    ]
    assert [v["seed"] for v in values(["seed=3:6"])] == ["3", "4", "5"]


def test_names_are_fields_or_arguments_of_the_config():
    over = ["cell=gru,elman", "hidden=4,5", "order=row", "network.num_layers=2"]
    networks = [m.experiment.network for m in trials(CONFIG, [], over)]
    assert [n.cell for n in networks] == [
        jrnn.GRU(4),
        jrnn.GRU(5),
        jrnn.Elman(4),
        jrnn.Elman(5),
    ]
    assert {n.num_layers for n in networks} == {2}
    given = trials(f"{CONFIG}:cell=gru,hidden=9", [], ["cell=lstm", "seed=5"])
    assert given[0].experiment.network.cell == jrnn.LSTM(9)


def test_draws_are_repeatable_and_even_on_their_scale():
    over = ["optimizer.learning_rate=1e-4:1:log", "network.dropout=0.2:0.4:lin", "seed=0:3"]
    found = values(over, random=400, draw_seed=1)
    assert found == values(over, random=400, draw_seed=1) != values(over, random=400, draw_seed=2)
    rates = np.log10([float(v["optimizer.learning_rate"]) for v in found])
    assert -4 <= rates.min() and rates.max() <= 0 and abs(rates.mean() + 2) < 0.2
    rates = np.array([float(v["network.dropout"]) for v in found])
    assert 0.2 <= rates.min() and rates.max() <= 0.4 and abs(rates.mean() - 0.3) < 0.01
    assert {v["seed"] for v in found} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "--over must be given at least once"),
        (["seed"], "--over must be name=values"),
        (["=1"], "--over must be name=values"),
        (["seed=5:5"], "a range must have values"),
        (["seed=a:b"], "a range must be first:last with ints"),
        (["optimizer.learning_rate=1:2:sin3"], "a range must be first:last"),
        (["optimizer.learning_rate=0:1:log3"], "positive on a log scale"),
        (["optimizer.learning_rate=1:inf:lin3"], "must be finite"),
        (["optimizer.learning_rate=1e-4:1e-2:log"], "draw random trials with --random"),
        (["seed=1", "seed=2"], "got seed twice"),
        (["optimizer.algorithm=adamw", "optimizer.learning_rate=-1"], "must be above 0, got -1.0"),
        (["sed=1"], "must name a field of the experiment or an argument .*did you mean 'seed'"),
    ],
)
def test_what_cannot_be_read_is_refused(over, message):
    with pytest.raises(ValueError, match=message):
        trials(CONFIG, [], over)


@pytest.mark.parametrize(
    "over",
    ["seed=x", "seed=1,,2", "optimizer.lr=1", "optimizer.algorithm=adm", "optimizer.algorithm=sgd"],
)
def test_a_value_that_is_refused_ends_as_a_flag_would(over, capsys):
    with pytest.raises(SystemExit) as ended:
        trials(CONFIG, [], [over])
    assert ended.value.code == 2 and capsys.readouterr().err
