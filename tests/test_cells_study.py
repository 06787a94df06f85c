"""The comparison of cells: sizes, results, and verdicts on claims."""

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
from experiments.cells.cell_configs import (
    CELL_CONFIGS,
    CONVLSTM_POSITIONS,
    count_parameters,
    get_hidden_size,
    match_parameter_count,
)
from jrnn.cells import REGISTRY

RESULTS = Path(__file__).parent.parent / "experiments/cells/results"


def row(cell: str, task: str, test: list[Any], more: list[Any] | None = None) -> dict[str, Any]:
    """Returns a row of the results, with the metric of each seed.

    Args:
      cell: name of the cell.
      task: name of the task.
      test: the metrics on the test split.
      more: the metrics on longer sequences; None for tasks without them.
    """
    constants = {"hidden": 3, "options": "", "baseline": 0.1}
    recurrence = "linear" if cell == "mingru" else "dense"
    longer = {} if more is None else {report.LONGER: more}
    metrics = {"test": test, "more": longer}
    return constants | metrics | {"cell": cell, "task": task, "recurrence": recurrence}


def verdicts(*rows: dict[str, Any]) -> dict[str, str]:
    """Returns the verdicts, by claim, on all claims that the rows can decide."""
    result = {"rows": list(rows), "step_ms": {}}
    return {verdict.claim: verdict.verdict for verdict in report.judge_claims(result)}


def test_every_cell_is_compared():
    assert REGISTRY.keys() <= CELL_CONFIGS.keys()


def test_input_of_convlstm_is_repeated_at_each_position():
    cell: Any = CELL_CONFIGS["convlstm"].make(3)
    params = cell.init(jax.random.key(0), 2)
    x = jax.random.normal(jax.random.key(1), (5, 2))
    _, y = cell.step(params, cell.init_carry(params, (5,)), x)
    plain = jrnn.ConvLSTM(3, spatial_shape=(CONVLSTM_POSITIONS,))
    repeated = jnp.stack([x] * CONVLSTM_POSITIONS, axis=1)
    _, expected = plain.step(params, plain.init_carry(params, (5,)), repeated)
    assert jnp.array_equal(y, expected.reshape(5, CONVLSTM_POSITIONS * 3))


@pytest.mark.parametrize("sizes", [(1, 10), (2, 1), (2, 2), (6, 6)], ids=str)
@pytest.mark.parametrize("name", ["lstm", "mlstm", "clockwork", "depthgatedlstm", "indrnn"])
def test_networks_have_approximately_the_given_number_of_parameters(
    name: str, sizes: tuple[int, int]
):
    inputs, outputs = sizes
    count = study.Study().parameters
    cell = match_parameter_count(CELL_CONFIGS[name], inputs, outputs, count)
    params = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
    actual = count_parameters(params) + (get_hidden_size(cell) + 1) * outputs
    assert abs(actual - count) <= 0.06 * count


def test_impossible_number_of_parameters_raises():
    with pytest.raises(
        ValueError, match="count must be possible for a hidden size, got 20; the nearest is"
    ):
        match_parameter_count(CELL_CONFIGS["mlstm"], 2, 2, 20)


def test_study_writes_results_and_resumes(tmp_path, capsys):
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
    with pytest.raises(SystemExit, match="options of the saved results must be"):
        study.main([*flags.split(), "--seeds", "2"])


def test_results_of_other_versions_or_steps_raise(tmp_path):
    shared = {"options": {"seeds": 5}, "versions": {"jax": "1"}, "rows": []}
    new = shared | {"machine": {"cpu": "another"}}
    old = shared | {"machine": {"cpu": "one"}}
    saved = old | {"rows": [row("gru", "s3", [0.5]) | {"steps": study.Study().steps("s3")}]}
    resume = lambda saved, **options: study.resume(study.Study(**options), new, saved, tmp_path)
    assert resume(saved) is saved
    assert [row["cpu"] for row in saved["rows"]] == ["one"]
    message = "versions of the saved results must be {'jax': '1'}, got {'jax': '0'}"
    with pytest.raises(SystemExit, match=message):
        resume(saved | {"versions": {"jax": "0"}})
    message = "steps of gru on s3 must be 200, got 2000"
    with pytest.raises(SystemExit, match=message):
        resume(saved, shorten=10)


def test_metric_of_nan_loss_is_none():
    data = study.TASK_CONFIGS["digits"].task.load()
    trainer = study.CellTrainer(study.Study(parameters=2000), "gru", data, steps=2)
    (metrics,) = trainer.train([0], [1e-3], [data.test])
    assert 0 <= (metrics[0] or -1) <= 1
    trainer.data = replace(data, train=data.train._replace(xs=data.train.xs * np.nan))
    assert trainer.train([0], [1e-3], [data.test]) == [[None]]
    assert study.finite_metric({"loss": float("nan"), "metric": 0.1}) is None


def test_diverged_run_has_the_worst_metric():
    assert report.get_metrics(row("gru", "adding", [0.1, None])) == [0.1, float("inf")]
    assert report.get_metrics(row("gru", "digits", [0.1, None])) == [0.1, 0.0]
    assert report.count_solved(row("gru", "adding", [0.009, 0.01, None])) == 1
    assert report.count_solved(row("gru", "s3", [0.95, 0.94, None])) == 1


HIGH, LOW = [0.9, 0.91, 0.92, 0.93, 0.94], [0.5, 0.51, 0.52, 0.53, 0.54]
MIXED = [0.3, 0.9, 0.95, 0.96, 0.2]


@pytest.mark.parametrize(
    "one, other, verdict",
    [
        (HIGH, LOW, "confirmed"),
        (LOW, HIGH, "not confirmed"),
        (HIGH, MIXED, "no significant difference"),
        (HIGH[:3], LOW[:3], "too few seeds"),
    ],
)
def test_verdict_on_two_cells_requires_a_significant_difference(one, other, verdict):
    claim = "a forget bias of 1 is better than 0"
    assert (
        verdicts(row("lstm", "digits", one), row("lstm-bias-0", "digits", other))[claim] == verdict
    )
    errors = [row("lstm", "adding", other), row("lstm-bias-0", "adding", one)]
    assert verdicts(*errors)[claim] == verdict
    claim = "NP performs as well as the LSTM with peepholes"
    rows = row("lstm-NP", "digits", one), row("lstm-peepholes", "digits", other)
    assert verdicts(*rows)[claim] == verdict


@pytest.mark.parametrize(
    "worst, verdict",
    [
        ({"NFG": LOW, "NOAF": LOW}, "confirmed"),
        ({"NFG": LOW, "NIG": LOW}, "partly confirmed"),
        ({"NP": LOW, "NIG": LOW}, "not confirmed"),
        ({"NFG": MIXED, "NOAF": MIXED}, "not confirmed"),  # worse, but not significantly
        ({}, "not confirmed"),
    ],
)
def test_verdict_on_the_worst_variants_requires_a_significant_difference(worst, verdict):
    rows = [row(f"lstm-{name}", "digits", worst.get(name, HIGH)) for name in report.GREFF_VARIANTS]
    rows.append(row("lstm-peepholes", "digits", HIGH))
    assert verdicts(*rows)["NFG and NOAF are the worst of the eight variants"] == verdict


@pytest.mark.parametrize(
    "irnn, elman, verdict",
    [
        ([0.001] * 5, [0.2] * 5, "confirmed"),
        ([0.001, 0.2, 0.2, 0.2, 0.2], [0.2] * 5, "partly confirmed"),
        ([0.15] * 5, [0.2] * 5, "not confirmed"),  # better, but neither solves the task
        ([0.001] * 5, [0.001] * 5, "not confirmed"),
    ],
)
def test_verdict_on_the_irnn_depends_on_the_number_of_seeds_that_solve_the_task(
    irnn, elman, verdict
):
    claim = "a ReLU network initialized to the identity solves adding, a tanh network does not"
    assert verdicts(row("irnn", "adding", irnn), row("elman", "adding", elman))[claim] == verdict


@pytest.mark.parametrize(
    "gated, linear, verdict",
    [
        ((1.0, 0.5), (0.5, 0.5), "confirmed"),
        ((0.5, 0.5), (0.5, 0.5), "partly confirmed"),  # only the sLSTM solves the task
        ((1.0, 1.0), (1.0, 0.5), "not confirmed"),  # minGRU solves the task, too
    ],
)
def test_verdict_on_state_tracking_depends_only_on_the_training_length(gated, linear, verdict):
    """Each pair has the accuracy at the training length and the accuracy at a longer one."""
    claim = "linear cells do not track state where LSTM and sLSTM do"
    s3_row = lambda cell, pair: row(cell, "s3", [pair[0]], [pair[1]])
    rows = s3_row("lstm", gated), s3_row("slstm", (1.0, 1.0))
    assert verdicts(*rows, s3_row("mingru", linear))[claim] == verdict
    assert claim not in verdicts(*rows)


def test_saved_table_matches_the_results():
    result = json.loads((RESULTS / "cells.json").read_text("utf-8"))
    text = (RESULTS / "cells.md").read_text("utf-8")
    for part in (report.conditions, report.markdown, report.claims_markdown):
        assert part(result) in text
    keys = {(row["cell"], row["task"]) for row in result["rows"]}
    assert keys >= {(cell, task) for cell in CELL_CONFIGS for task in ("digits", "parity")}
    assert all(len(row["test"]) >= 5 for row in result["rows"])
