"""The study of cells: who takes part, what it writes, and how it judges claims."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from experiments.cells import report
from experiments.cells import run as study
from experiments.cells.contenders import (
    CONTENDERS,
    PLACES,
    hidden_units,
    of_size,
    parameters,
)
from jrnn.cells import REGISTRY

RESULTS = Path(__file__).parent.parent / "experiments/cells/results"


def row(cell: str, task: str, test: list[Any], more: list[Any] | None = None) -> dict[str, Any]:
    """A row as the study writes it."""
    same = {"hidden": 3, "options": "", "baseline": 0.1}
    kind = "linear" if cell == "mingru" else "dense"
    long = {} if more is None else {report.LONGER: more}
    return same | {"cell": cell, "task": task, "test": test, "more": long, "recurrence": kind}


def judged(*rows: dict[str, Any]) -> dict[str, str]:
    """The verdicts on what the rows bear on, by claim."""
    result = {"rows": list(rows), "step_ms": {}}
    return {verdict.claim: verdict.verdict for verdict in report.claims(result)}


def test_every_cell_takes_part():
    assert REGISTRY.keys() <= CONTENDERS.keys()


def test_convlstm_sees_its_input_at_each_place():
    cell = CONTENDERS["convlstm"].make(3)
    params = cell.init(jax.random.key(0), 2)
    x = jax.random.normal(jax.random.key(1), (5, 2))
    _, y = cell.step(params, cell.init_carry(params, (5,)), x)
    plain = jrnn.ConvLSTM(3, (PLACES,))
    places = jnp.stack([x] * PLACES, axis=1)
    _, want = plain.step(params, plain.init_carry(params, (5,)), places)
    assert jnp.array_equal(y, want.reshape(5, PLACES * 3))


@pytest.mark.parametrize("sizes", [(1, 10), (2, 1), (2, 2), (6, 6)], ids=str)
@pytest.mark.parametrize("name", ["lstm", "mlstm", "clockwork", "depthgatedlstm", "indrnn"])
def test_networks_have_nearly_the_number_of_parameters_asked_for(name: str, sizes: tuple[int, int]):
    inputs, outputs = sizes
    count = study.Study().parameters
    cell = of_size(CONTENDERS[name], inputs, outputs, count)
    params = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
    had = parameters(params) + (hidden_units(cell) + 1) * outputs
    assert abs(had - count) <= 0.06 * count


def test_a_number_of_parameters_that_no_size_has_is_refused():
    with pytest.raises(ValueError, match="no hidden size gives 20 parameters: .* is the nearest"):
        of_size(CONTENDERS["mlstm"], 2, 2, 20)


def test_study_trains_writes_and_goes_on_where_it_was(tmp_path, capsys):
    flags = f"--seeds 1 --shorten 150 --rates 0.01 --jobs 1 --parameters 2000 --out {tmp_path}"
    study.main([*flags.split(), "--cells", "gru", "--tasks", "s3"])
    first = json.loads((tmp_path / "cells.json").read_text("utf-8"))
    study.main([*flags.split(), "--cells", "gru", "mingru", "--tasks", "s3"])
    result = json.loads((tmp_path / "cells.json").read_text("utf-8"))
    assert result["rows"][0] == first["rows"][0]
    assert [row["cell"] for row in result["rows"]] == ["gru", "mingru"] == list(result["step_ms"])
    for row in result["rows"]:
        assert len(row["test"]) == len(row["more"][report.LONGER]) == 1
        assert 0 <= row["test"][0] <= 1 and row["rate"] == 0.01
    assert (tmp_path / "cells.png").stat().st_size > 10_000
    assert "| `mingru` | linear |" in (tmp_path / "cells.md").read_text("utf-8")
    with pytest.raises(SystemExit, match="holds a study with other options"):
        study.main([*flags.split(), "--seeds", "2"])


def test_another_version_or_number_of_steps_is_not_mixed_in(tmp_path):
    shared = {"options": {"seeds": 5}, "versions": {"jax": "1"}, "rows": []}
    new = shared | {"machine": {"cpu": "another"}}
    before = shared | {"machine": {"cpu": "one"}}
    saved = before | {"rows": [row("gru", "s3", [0.5]) | {"steps": study.Study().steps("s3")}]}
    resumed = lambda saved, **other: study.resumed(study.Study(**other), new, saved, tmp_path)
    assert resumed(saved) is saved
    assert [row["cpu"] for row in saved["rows"]] == ["one"]
    with pytest.raises(SystemExit, match="other versions, {'jax': '0'} and not {'jax': '1'}"):
        resumed(saved | {"versions": {"jax": "0"}})
    with pytest.raises(SystemExit, match="holds 2000 steps of gru on s3, and not 200"):
        resumed(saved, shorten=10)


def test_a_network_without_numbers_is_no_guess():
    data = study.ASSIGNMENTS["digits"].task.load()
    contender = study.Trained(study.Study(parameters=2000), "gru", data, steps=2)
    (found,) = contender.train([0], [1e-3], [data.test])
    assert 0 <= (found[0] or -1) <= 1
    contender.data = replace(data, train=data.train._replace(xs=data.train.xs * np.nan))
    assert contender.train([0], [1e-3], [data.test]) == [[None]]
    assert study.finite_metric({"loss": float("nan"), "metric": 0.1}) is None


def test_a_run_without_a_number_counts_as_the_worst():
    assert report.values(row("gru", "adding", [0.1, None])) == [0.1, float("inf")]
    assert report.values(row("gru", "digits", [0.1, None])) == [0.1, 0.0]
    assert report.solved(row("gru", "adding", [0.009, 0.01, None])) == 1
    assert report.solved(row("gru", "s3", [0.95, 0.94, None])) == 1


HIGH, LOW = [0.9, 0.91, 0.92, 0.93, 0.94], [0.5, 0.51, 0.52, 0.53, 0.54]
MIXED = [0.3, 0.9, 0.95, 0.96, 0.2]


@pytest.mark.parametrize(
    "one, other, verdict",
    [
        (HIGH, LOW, "confirmed"),
        (LOW, HIGH, "not confirmed"),
        (HIGH, MIXED, "no difference seen"),
        (HIGH[:3], LOW[:3], "too few seeds to tell"),
    ],
)
def test_claim_of_two_cells_is_held_to_all_seeds(one, other, verdict):
    claim = "a forget bias of 1 is better than 0"
    assert judged(row("lstm", "digits", one), row("lstm-bias-0", "digits", other))[claim] == verdict
    errors = [row("lstm", "adding", other), row("lstm-bias-0", "adding", one)]
    assert judged(*errors)[claim] == verdict
    claim = "NP loses nothing against the LSTM with peepholes"
    rows = row("lstm-NP", "digits", one), row("lstm-peepholes", "digits", other)
    assert judged(*rows)[claim] == verdict


@pytest.mark.parametrize(
    "worst, verdict",
    [
        ({"NFG": LOW, "NOAF": LOW}, "confirmed"),
        ({"NFG": LOW, "NIG": LOW}, "half confirmed"),
        ({"NP": LOW, "NIG": LOW}, "not confirmed"),
        ({"NFG": MIXED, "NOAF": MIXED}, "not confirmed"),  # behind, but by chance
        ({}, "not confirmed"),
    ],
)
def test_the_variants_that_lose_most_must_lose(worst, verdict):
    rows = [row(f"lstm-{name}", "digits", worst.get(name, HIGH)) for name in report.GREFF]
    rows.append(row("lstm-peepholes", "digits", HIGH))
    assert judged(*rows)["of the eight variants NFG and NOAF lose most"] == verdict


@pytest.mark.parametrize(
    "irnn, elman, verdict",
    [
        ([0.001] * 5, [0.2] * 5, "confirmed"),
        ([0.001, 0.2, 0.2, 0.2, 0.2], [0.2] * 5, "confirmed in part"),
        ([0.15] * 5, [0.2] * 5, "not confirmed"),  # better, but neither adds
        ([0.001] * 5, [0.001] * 5, "not confirmed"),
    ],
)
def test_who_adds_is_judged_by_who_solves_it(irnn, elman, verdict):
    claim = "a ReLU network that begins at the identity adds, a tanh network does not"
    assert judged(row("irnn", "adding", irnn), row("elman", "adding", elman))[claim] == verdict


@pytest.mark.parametrize(
    "gated, linear, verdict",
    [
        ((1.0, 0.5), (0.5, 0.5), "confirmed"),
        ((0.5, 0.5), (0.5, 0.5), "confirmed in part"),  # the sLSTM does
        ((1.0, 1.0), (1.0, 0.5), "not confirmed"),  # at 32 all do
    ],
)
def test_state_tracking_is_judged_at_one_length(gated, linear, verdict):
    claim = "linear cells do not track state where LSTM and sLSTM do"
    both = lambda cell, pair: row(cell, "s3", [pair[0]], [pair[1]])
    rows = both("lstm", gated), both("slstm", (1.0, 1.0))
    assert judged(*rows, both("mingru", linear))[claim] == verdict
    assert claim not in judged(*rows)


def test_written_table_is_that_of_the_results():
    result = json.loads((RESULTS / "cells.json").read_text("utf-8"))
    text = (RESULTS / "cells.md").read_text("utf-8")
    for part in (report.conditions, report.markdown, report.claims_markdown):
        assert part(result) in text
    done = {(row["cell"], row["task"]) for row in result["rows"]}
    assert done >= {(cell, task) for cell in CONTENDERS for task in ("digits", "parity")}
    assert all(len(row["test"]) >= 5 for row in result["rows"])
