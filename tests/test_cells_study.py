"""The study of cells: who takes part, what it writes, and how it judges claims."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.cells import report
from experiments.cells import run as study
from experiments.cells.contenders import CONTENDERS, of_size, parameters
from jrnn.cells import REGISTRY

RESULTS = Path(__file__).parent.parent / "experiments/cells/results"


def row(cell: str, task: str, test: list[float], more: list[float] | None = None) -> dict[str, Any]:
    """A row as the study writes it."""
    same = {"hidden": 3, "options": "", "baseline": 0.1}
    kind = "linear" if cell == "mingru" else "dense"
    long = {} if more is None else {report.LONGER: more}
    return same | {"cell": cell, "task": task, "test": test, "more": long, "recurrence": kind}


def judged(*rows: dict[str, Any]) -> dict[str, str]:
    """The verdicts on what the rows bear on, by claim."""
    result = {"rows": list(rows), "step_ms": {}}
    return {verdict.claim: verdict.verdict for verdict in report.claims(result)}


def test_every_cell_takes_part_but_those_of_images():
    assert REGISTRY.keys() - CONTENDERS.keys() == {"convlstm"}


@pytest.mark.parametrize("name", ["lstm", "mlstm", "clockwork", "depthgatedlstm", "indrnn"])
def test_networks_have_nearly_the_number_of_parameters_asked_for(name: str):
    cell = of_size(CONTENDERS[name], input_size=2, output_size=3, count=2000)
    params = jax.eval_shape(lambda key: cell.init(key, 2), jax.random.key(0))
    assert abs(parameters(params) + (cell.hidden_size + 1) * 3 - 2000) < 0.08 * 2000


def test_study_trains_writes_and_goes_on_where_it_was(tmp_path, capsys):
    flags = f"--seeds 1 --shorten 150 --rates 0.01 --jobs 1 --parameters 300 --out {tmp_path}"
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


def test_a_run_without_a_number_counts_as_the_worst():
    nan = float("nan")
    assert report.values(row("gru", "adding", [0.1, nan])) == [0.1, float("inf")]
    assert report.values(row("gru", "digits", [0.1, nan])) == [0.1, 0.0]
    assert report.solved(row("gru", "adding", [0.009, 0.01, nan])) == 1
    assert report.solved(row("gru", "s3", [0.95, 0.94, nan])) == 1


HIGH, LOW, MIXED = [0.9, 0.91, 0.92, 0.93, 0.94], [0.5, 0.51, 0.52, 0.53, 0.54], [0.3, 0.9, 0.95]


@pytest.mark.parametrize(
    "one, other, verdict",
    [(HIGH, LOW, "confirmed"), (LOW, HIGH, "the reverse"), (HIGH, MIXED, "no difference seen")],
)
def test_claim_of_more_is_held_to_all_seeds(one, other, verdict):
    claim = "a forget bias of 1 is better than one of 0"
    assert judged(row("lstm", "digits", one), row("lstm-bias-0", "digits", other))[claim] == verdict
    errors = [row("lstm", "adding", other), row("lstm-bias-0", "adding", one)]
    assert judged(*errors)[claim] == verdict


@pytest.mark.parametrize(
    "one, other, verdict",
    [
        (HIGH, LOW, "confirmed"),
        (LOW, HIGH, "not confirmed"),
        (MIXED, HIGH, "confirmed: no loss seen"),
    ],
)
def test_claim_of_no_less_is_refuted_by_a_clear_loss_alone(one, other, verdict):
    rows = row("lstm-NP", "digits", one), row("lstm-peepholes", "digits", other)
    assert judged(*rows)["NP loses nothing against the LSTM with peepholes"] == verdict


@pytest.mark.parametrize(
    "worst, verdict",
    [
        (("NFG", "NOAF"), "confirmed"),
        (("NFG", "NIG"), "half confirmed"),
        (("NP", "NIG"), "not confirmed"),
    ],
)
def test_the_variants_that_lose_most_are_found(worst, verdict):
    rows = [
        row(f"lstm-{name}", "adding", [0.2] if name in worst else [0.1]) for name in report.GREFF
    ]
    assert judged(*rows)["of the eight variants NFG and NOAF lose most"] == verdict


@pytest.mark.parametrize(
    "gated, linear, verdict",
    [(1.0, 0.5, "confirmed"), (0.5, 0.5, "confirmed in part"), (1.0, 1.0, "not confirmed")],
)
def test_state_tracking_is_judged_by_who_solves_it(gated, linear, verdict):
    both = lambda cell, value: row(cell, "s3", [value], [value])
    rows = both("lstm", gated), both("slstm", 1.0), both("mingru", linear)
    assert judged(*rows)["linear cells do not track state where LSTM and sLSTM do"] == verdict


def test_written_table_is_that_of_the_results():
    result = json.loads((RESULTS / "cells.json").read_text("utf-8"))
    text = (RESULTS / "cells.md").read_text("utf-8")
    assert report.markdown(result) in text and report.claims_markdown(result) in text
    assert {row["cell"] for row in result["rows"]} == CONTENDERS.keys()
    assert all(len(row["test"]) >= 5 for row in result["rows"])
