"""`make gpu-check` with small cases on the CPU: results, files and deadlines."""

import inspect
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jrnn.bench.gpu_check import __main__ as command
from jrnn.bench.gpu_check import compilation, correctness, plan, speed, tables
from jrnn.bench.gpu_check.compilation import Deadline
from jrnn.bench.implementations import Case, Implementation, Shape
from jrnn.bench.peers import jax_cudnn

ROOT = Path(__file__).parents[2]
SHAPE = plan.TINY.checked_shape


def check_layer(name, reference_fn=correctness.reference, seconds=100.0):
    """Returns the rows of one layer of `plan.LAYERS`."""
    makers = {name: plan.LAYERS[name]}
    return list(correctness.check_layers(makers, SHAPE, Deadline(seconds), reference_fn))


def wrong_reference(cell, problem):
    """Returns the expected results, with a wrong gradient of the inputs."""
    correct = correctness.reference(cell, problem)
    return correct._replace(xs_grad=1.001 * correct.xs_grad)


def test_run_checks_times_and_writes_all_rows(monkeypatch, tmp_path):
    # Few engines, because compilation takes most of the time of this test.
    monkeypatch.setattr(speed, "ENGINES_BY_CELL", {"gru": ("scan",), "paragru": ()})
    monkeypatch.setattr(correctness, "CHECKED_ENGINES", ("fused", "associative"))
    out = tmp_path / "deep" / "gpu.json"
    result = command.run(plan.TINY, out, Deadline(100.0), reference_fn=wrong_reference)
    written = json.loads(out.read_text("utf-8"))
    assert written["correctness"] == result["correctness"] and written["speed"] == result["speed"]
    assert {"commit", "machine", "versions", "platform_version"} <= written.keys()

    assert [row["engine"] for row in result["correctness"]] == ["fused", "associative"]
    for row in result["correctness"]:
        assert row["status"] == "mismatch" and "xs_grad 1.0e-03, carry_grad" in row["reason"]
        assert sorted(row["errors"].values())[-2] < 1e-6  # the other fields are correct
    assert len(command.failures(result)) == 2

    gru, paragru, cuda_graphs = result["speed"]
    medians = {row["name"]: row["median_seconds"] for row in gru["implementations"]}
    assert {"jrnn scan", "nnx GRUCell"} <= medians.keys() and min(medians.values()) > 0
    assert gru["dtype"] == "bfloat16" and gru["mode"] == "forward+backward"
    assert paragru["newton"]["converged"] and 0 < paragru["newton"]["iterations"] < 8
    assert [row["name"] for row in cuda_graphs["implementations"]] == ["jrnn scan (CUDA graphs)"]

    text = tables.render(written)
    assert re.search(r"\| mingru \| MISMATCH 1e-03 +\| MISMATCH 1e-03 +\|", text)
    peers = [seconds for name, seconds in medians.items() if not name.startswith("jrnn")]
    engine_time = min(medians["jrnn scan"], cuda_graphs["implementations"][0]["median_seconds"])
    assert f"| {min(peers) / engine_time:.2f}" in text


def test_unsupported_cell_is_not_applicable_and_error_is_a_failure(monkeypatch):
    monkeypatch.setattr(correctness, "CHECKED_ENGINES", ("associative",))
    (row,) = check_layer("elman", reference_fn=lambda cell, problem: None)
    assert row["status"] == "not applicable" and "linear" in row["reason"]
    assert command.failures({"correctness": [row], "speed": []}) == []
    monkeypatch.setattr(correctness, "UNIVERSAL_ENGINES", ("associative",))
    (row,) = check_layer("elman", reference_fn=lambda cell, problem: None)
    assert row["status"] == "error" and row["reason"].startswith("TypeError: Associative")
    assert len(command.failures({"correctness": [row], "speed": []})) == 1


@pytest.mark.parametrize("field", correctness.Results._fields)
def test_every_field_of_the_results_is_compared(field):
    rng = np.random.default_rng(0)
    pair = lambda: (rng.normal(size=(2, 3)), np.complex128(1 + 1j) * rng.normal(size=4))
    expected = correctness.Results(*(pair() for _ in correctness.Results._fields))
    real, other = getattr(expected, field)
    assert correctness.compare(expected, expected, 1e-9)["status"] == "passed"
    for wrong, error in (((real, 1.001 * other), 1e-3), ((np.nan * real, other), None)):
        row = correctness.compare(expected._replace(**{field: wrong}), expected, 5e-4)
        assert row["status"] == "mismatch" and field in row["reason"]
        assert row["errors"][field] == (error and pytest.approx(error))
        assert sum(row["errors"][name] != 0 for name in expected._fields) == 1


def test_all_rows_are_skipped_after_the_deadline():
    assert {row["status"] for row in check_layer("elman", seconds=0.0)} == {"skipped"}
    (suite, *_) = speed.suites(plan.TINY)
    groups = list(speed.measure(suite, 0.0, Deadline(0.0)))
    assert [entry["kind"] for group in groups for entry in group["missing"]] == ["DeadlineExceeded"]
    assert command.failures({"correctness": [], "speed": groups}) == []


def test_build_all_yields_in_order_and_reports_the_deadline():
    def fail():
        raise ValueError("failed")

    builds = {"a": lambda: time.sleep(0.05), "b": fail, "c": lambda: time.sleep(1.0)}
    outcomes = dict(compilation.build_all(builds, Deadline(0.4)))
    assert list(outcomes) == ["a", "b", "c"] and outcomes["a"] is None
    assert isinstance(outcomes["b"], ValueError) and isinstance(
        outcomes["c"], compilation.DeadlineExceeded
    )


def test_failing_implementation_does_not_affect_others():
    case = Case("gru", "forward", Shape(2, 3, 4, 5))

    def fail():
        raise MemoryError("2 GiB at 0x7f")

    good = Implementation("jrnn scan", "jrnn", lambda: jnp.ones((3, 2, 5)))
    built = {"jrnn scan": [good], "jrnn fused": [Implementation("jrnn fused", "jrnn", fail)]}
    suite = speed.Suite("gru", "float32", (case.shape,), ("forward",))
    group = speed.measure_case(suite, case, built, 0.0, Deadline(10.0))
    assert [row["name"] for row in group["implementations"]] == ["jrnn scan"]
    assert group["missing"] == [
        {"name": "jrnn fused", "reason": "MemoryError: 2 GiB", "kind": "MemoryError"}
    ]
    assert command.failures({"correctness": [], "speed": [group]}) == [
        "gru jrnn fused: MemoryError: 2 GiB"
    ]


def test_full_plan_has_all_cells_and_dtypes_and_starts_with_the_lstm():
    first, *_, last = speed.suites(plan.FULL)
    assert (first.cell, first.dtype, "cudnn" in first.peers) == ("lstm", "float32", True)
    assert last.dtype == "bfloat16"
    timed = {(suite.cell, suite.dtype) for suite in speed.suites(plan.FULL)}
    assert timed == {(cell, dtype) for cell in plan.TIMED_CELLS for dtype in plan.FULL.dtypes}
    assert plan.FULL.checked_layers[: len(plan.TIMED_CELLS)] == plan.TIMED_CELLS
    assert set(plan.FULL.checked_layers) == set(plan.LAYERS)


def test_cudnn_lstm_is_called_with_valid_arguments(monkeypatch):
    signature = inspect.signature(jax_cudnn.rnn.lstm)

    def lstm(*args, **kwargs):
        bound = signature.bind(*args, **kwargs).arguments
        assert bound["seq_lengths"].dtype == jnp.int32
        xs = bound["x"]
        return jnp.zeros((*xs.shape[:2], bound["hidden_size"])), None, None

    monkeypatch.setattr(jax_cudnn.rnn, "lstm", lstm)
    model = jax_cudnn.make_model(Case("lstm", "forward", Shape(2, 3, 4, 5)))
    assert model.apply(model.params, jnp.zeros((2, 3, 4))).shape == (2, 3, 5)
    assert model.params.shape == ((4 + 5 + 2) * 4 * 5,)


def test_default_file_is_named_after_the_gpu_unless_tiny(monkeypatch):
    monkeypatch.setattr(
        command.jax, "devices", lambda: [SimpleNamespace(device_kind="NVIDIA H200")]
    )
    assert command._default_out(tiny=False) == command.GPU_RESULTS_DIR / "nvidia-h200.json"
    assert command._default_out(tiny=True) == Path("build/gpu-check.json")


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
