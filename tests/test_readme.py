"""README's Python code runs, and the figures of README and docs match the saved results."""

import json
import re
from pathlib import Path

from experiments.cells import report as study
from jrnn import config
from jrnn.bench import newton, report, training
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
PERFORMANCE = (ROOT / "docs/performance.md").read_text("utf-8")
STUDIES = (ROOT / "docs/studies.md").read_text("utf-8")
MAX_LINES = 130


def test_readme_is_one_page():
    assert len(TEXT.splitlines()) <= MAX_LINES


def test_mentioned_files_exist():
    paths = set(re.findall(r"(?:configs|experiments|docs)/[\w/.]+\.\w+", TEXT + STUDIES))
    assert len(paths) >= 15
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_config_is_mentioned():
    names = [path.name for path in config.list_configs()]
    assert [name for name in names if f"configs/{name}" not in STUDIES] == []


def test_cells_are_counted_and_engines_are_listed():
    assert f"for {len(CELLS)} cells" in TEXT
    assert [name for name in ENGINES if f"| `{name}` |" not in TEXT] == []


def test_table_of_speed_matches_the_results():
    results = ROOT / "docs/benchmarks/epyc-2-cores.json"
    assert report.markdown(json.loads(results.read_text("utf-8")), "native") in PERFORMANCE


def test_table_of_newton_matches_the_results():
    results = ROOT / "docs/benchmarks/epyc-2-cores-newton.json"
    assert newton.markdown(json.loads(results.read_text("utf-8"))) in PERFORMANCE


def test_claims_match_the_results():
    results = ROOT / "experiments/cells/results/cells.json"
    assert study.claims_markdown(json.loads(results.read_text("utf-8"))) in STUDIES


def test_table_of_training_matches_the_results():
    results = ROOT / "docs/benchmarks/xeon-2-cores-training.json"
    result = json.loads(results.read_text("utf-8"))
    assert training.markdown(result) in PERFORMANCE
    assert training.stream_line(result) in PERFORMANCE
    assert training.sweep_line(result) in PERFORMANCE


def test_ratios_of_long_sequences_match_the_results():
    results = ROOT / "experiments/long_sequences/results/long_sequences.json"
    growth = json.loads(results.read_text("utf-8"))["growth"]
    ratio = {(r["cell"], r["steps"]): r["parallel_ms"] / r["scan_ms"] for r in growth}
    expected = tuple(f"{ratio[cell, 2**16]:.2f}" for cell in ("minGRU", "LRU"))
    match = re.search(r"minGRU takes (0\.\d+) and LRU (0\.\d+) of the time of `Scan`", PERFORMANCE)
    assert match is not None and match.groups() == expected
    assert "takes {} (minGRU) and {} (LRU) of the time of a loop".format(*expected) in TEXT


def test_figures_of_layers_match_the_results():
    results = json.loads((ROOT / "docs/benchmarks/epyc-2-cores.json").read_text("utf-8"))
    mean = {
        (entry["cell"], family): f"1 / {value:.2f}"
        for entry in results["summary"]
        if (entry["engine"], entry["mode"]) == ("jrnn native", "forward+backward")
        for family, value in entry["geometric_mean"].items()
    }
    assert f"the LSTM takes {mean['lstm', 'jax']} and the GRU {mean['gru', 'jax']} of" in TEXT
    assert f"and {mean['lstm', 'torch']} and {mean['gru', 'torch']} of that of PyTorch" in TEXT
    rows = [
        line for line in PERFORMANCE.splitlines() if line.startswith("| lstm | forward | 32x64x512")
    ]
    torch, onnxruntime = rows[0].split(" | ")[-2:]
    assert f"PyTorch ({torch}) and ONNX Runtime ({onnxruntime.strip(' |')})" in TEXT


def test_figures_of_training_match_the_results():
    results = ROOT / "docs/benchmarks/xeon-2-cores-training.json"
    result = json.loads(results.read_text("utf-8"))
    rows = [line.split(" | ") for line in training.markdown(result).splitlines()[2:]]
    low, high = sorted(row[3] for row in rows)
    assert f"makes {low} to {high} times as many training steps" in TEXT
    assert f"Miss: {min(row[2] for row in rows)} times" in TEXT
    (share,) = re.findall(r"takes (0\.\d+) of the time of 16", training.sweep_line(result))
    assert f"16 trials in one compilation take {share} of the time" in TEXT
    (latency,) = re.findall(r"(\d+ us) at 32", training.stream_line(result))
    assert f"one step of an LSTM with 32 units takes {latency}" in TEXT


def test_times_of_cells_match_the_results():
    results = ROOT / "experiments/cells/results/cells.json"
    times = json.loads(results.read_text("utf-8"))["step_ms"]
    ratio = times["mlstm"] / times["lstm"]
    assert f"a training step of mLSTM takes {ratio:.0f} times as long" in PERFORMANCE
