"""`make gpu-check` at tiny sizes on the CPU: results, files and deadlines."""

import inspect
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jrnn.bench.contenders import Case, Contender, Shape
from jrnn.bench.gpu_check import __main__ as command
from jrnn.bench.gpu_check import agreement, compiling, plan, speed, table
from jrnn.bench.gpu_check.compiling import Deadline
from jrnn.bench.peers import jax_cudnn

ROOT = Path(__file__).parent.parent
SHAPE = plan.TINY.checked_shape


def check(name, reference_fn=agreement.reference, seconds=100.0):
    """The rows of one cell."""
    makers = {name: plan.LAYERS[name]}
    return list(agreement.check_cells(makers, SHAPE, Deadline(seconds), reference_fn))


def wrong_reference(cell, problem):
    """A reference with one wrong gradient."""
    correct = agreement.reference(cell, problem)
    return correct._replace(xs_grad=1.001 * correct.xs_grad)


def test_run_checks_times_and_writes_all_rows(monkeypatch, tmp_path):
    # Few programs, because this test spends its time on compilation.
    monkeypatch.setattr(speed, "TIMED_ENGINES", {"gru": ("scan",), "paragru": ()})
    monkeypatch.setattr(agreement, "ENGINES", ("fused", "associative"))
    out = tmp_path / "deep" / "gpu.json"
    result = command.run(plan.TINY, out, Deadline(100.0), reference_fn=wrong_reference)
    written = json.loads(out.read_text("utf-8"))
    assert written["agreement"] == result["agreement"] and written["speed"] == result["speed"]
    assert {"commit", "machine", "versions", "platform_version"} <= written.keys()

    assert [row["engine"] for row in result["agreement"]] == ["fused", "associative"]
    for row in result["agreement"]:
        assert row["status"] == "differs" and "xs_grad 1.0e-03, carry_grad" in row["reason"]
        assert sorted(row["differences"].values())[-2] < 1e-6  # all others
    assert len(command.failures(result)) == 2

    gru, paragru, graphs = result["speed"]
    medians = {row["name"]: row["median_seconds"] for row in gru["contenders"]}
    assert {"jrnn scan", "nnx GRUCell"} <= medians.keys() and min(medians.values()) > 0
    assert gru["dtype"] == "bfloat16" and gru["direction"] == "forward+backward"
    assert paragru["newton"]["converged"] and 0 < paragru["newton"]["iterations"] < 8
    assert [row["name"] for row in graphs["contenders"]] == ["jrnn scan graphs"]

    text = table.text(written)
    assert re.search(r"\| mingru \| DIFFERS 1e-03 +\| DIFFERS 1e-03 +\|", text)
    peers = [seconds for name, seconds in medians.items() if not name.startswith("jrnn")]
    own = min(medians["jrnn scan"], graphs["contenders"][0]["median_seconds"])
    assert f"| {min(peers) / own:.2f}" in text


def test_unsupported_cell_is_not_a_failure_and_an_error_is_a_row(monkeypatch):
    monkeypatch.setattr(agreement, "ENGINES", ("associative",))
    (row,) = check("elman", reference_fn=lambda cell, problem: None)
    assert row["status"] == "not applicable" and "linear" in row["reason"]
    assert command.failures({"agreement": [row], "speed": []}) == []
    monkeypatch.setattr(agreement, "UNIVERSAL_ENGINES", ("associative",))
    (row,) = check("elman", reference_fn=lambda cell, problem: None)
    assert row["status"] == "error" and row["reason"].startswith("TypeError: Associative")
    assert len(command.failures({"agreement": [row], "speed": []})) == 1


@pytest.mark.parametrize("part", agreement.Results._fields)
def test_every_field_of_the_results_is_compared(part):
    rng = np.random.default_rng(0)
    pair = lambda: (rng.normal(size=(2, 3)), np.complex128(1 + 1j) * rng.normal(size=4))
    expected = agreement.Results(*(pair() for _ in agreement.Results._fields))
    real, other = getattr(expected, part)
    assert agreement.compare(expected, expected, 1e-9)["status"] == "agrees"
    for wrong, error in (((real, 1.001 * other), 1e-3), ((np.nan * real, other), None)):
        row = agreement.compare(expected._replace(**{part: wrong}), expected, 5e-4)
        assert row["status"] == "differs" and part in row["reason"]
        assert row["differences"][part] == (error and pytest.approx(error))
        assert sum(row["differences"][name] != 0 for name in expected._fields) == 1


def test_all_rows_are_skipped_after_the_deadline():
    assert {row["status"] for row in check("elman", seconds=0.0)} == {"skipped"}
    (batch, *_) = speed.batches(plan.TINY)
    groups = list(speed.measure(batch, 0.0, Deadline(0.0)))
    assert [entry["kind"] for group in groups for entry in group["missing"]] == ["OutOfTime"]
    assert command.failures({"agreement": [], "speed": groups}) == []


def test_build_all_keeps_the_order_and_yields_out_of_time():
    def fail():
        raise ValueError("failed")

    builds = {"a": lambda: time.sleep(0.05), "b": fail, "c": lambda: time.sleep(1.0)}
    results = dict(compiling.build_all(builds, Deadline(0.4)))
    assert list(results) == ["a", "b", "c"] and results["a"] is None
    assert isinstance(results["b"], ValueError) and isinstance(results["c"], compiling.OutOfTime)


def test_failing_contender_does_not_affect_others():
    case = Case("gru", "forward", Shape(2, 3, 4, 5))

    def fail():
        raise MemoryError("2 GiB at 0x7f")

    good = Contender("jrnn scan", "jrnn", lambda: jnp.ones((3, 2, 5)))
    built = {"jrnn scan": [good], "jrnn fused": [Contender("jrnn fused", "jrnn", fail)]}
    batch = speed.Batch("gru", "float32", (case.shape,), ("forward",))
    group = speed.measure_case(batch, case, built, 0.0, Deadline(10.0))
    assert [row["name"] for row in group["contenders"]] == ["jrnn scan"]
    assert group["missing"] == [
        {"name": "jrnn fused", "reason": "MemoryError: 2 GiB", "kind": "MemoryError"}
    ]
    assert command.failures({"agreement": [], "speed": [group]}) == [
        "gru jrnn fused: MemoryError: 2 GiB"
    ]


def test_full_plan_starts_with_the_most_informative_batch():
    first, *_, last = speed.batches(plan.FULL)
    assert (first.cell, first.dtype, "cudnn" in first.peers) == ("lstm", "float32", True)
    assert last.dtype == "bfloat16"
    timed = {(batch.cell, batch.dtype) for batch in speed.batches(plan.FULL)}
    assert timed == {(cell, dtype) for cell in plan.TIMED for dtype in plan.FULL.dtypes}
    assert plan.FULL.checked[: len(plan.TIMED)] == plan.TIMED
    assert set(plan.FULL.checked) == set(plan.LAYERS)


def test_cudnn_lstm_is_called_with_valid_arguments(monkeypatch):
    signature = inspect.signature(jax_cudnn.rnn.lstm)

    def lstm(*args, **kwargs):
        bound = signature.bind(*args, **kwargs).arguments
        assert bound["seq_lengths"].dtype == jnp.int32
        xs = bound["x"]
        return jnp.zeros((*xs.shape[:2], bound["hidden_size"])), None, None

    monkeypatch.setattr(jax_cudnn.rnn, "lstm", lstm)
    model = jax_cudnn.model(Case("lstm", "forward", Shape(2, 3, 4, 5)))
    assert model.apply(model.params, jnp.zeros((2, 3, 4))).shape == (2, 3, 5)
    assert model.params.shape == ((4 + 5 + 2) * 4 * 5,)


WITHOUT_OPTIONAL_PACKAGES = """
import importlib.metadata, sys
def version(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
absent = "optax orbax tyro rich grain chex filelock matplotlib torch jrnn._kernels".split()
sys.modules.update(dict.fromkeys(absent))
import jrnn
from jrnn.bench.gpu_check import __main__ as command
print(jrnn.__version__)
sys.exit(command.main([]))
"""


def test_runs_from_the_source_tree_and_exits_with_2_on_a_cpu():
    command = [sys.executable, "-c", WITHOUT_OPTIONAL_PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "0+unknown"
    assert done.returncode == 2 and "JAX found no GPU" in done.stderr
