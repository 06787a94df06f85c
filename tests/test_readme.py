"""Tests that the Python code of README runs, its files exist, and its tables match the results."""

import json
import re
import subprocess
import sys
from pathlib import Path

from experiments.cells import report as study
from jrnn import config
from jrnn.bench import newton, report, training
from jrnn.cli import inspect
from jrnn.transforms import REGISTRY as TRANSFORMS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_python_code_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 3
    (tmp_path / "readme.py").write_text("\n".join(blocks), "utf-8")
    subprocess.run([sys.executable, "-W", "error", "readme.py"], cwd=tmp_path, check=True)


def test_mentioned_files_exist():
    paths = set(re.findall(r"(?:configs|experiments)/[\w/.]+\.\w+", TEXT))
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_config_is_mentioned():
    assert [path.name for path in config.list_configs() if f"configs/{path.name}" not in TEXT] == []


def test_table_of_cells_matches_the_command():
    assert inspect.cells_markdown() in TEXT


def test_table_of_transforms_is_complete():
    assert [name for name in TRANSFORMS if f"`{name}`" not in TEXT] == []


def test_table_of_speed_matches_the_results():
    results = ROOT / "docs/benchmarks/epyc-2-cores.json"
    assert report.markdown(json.loads(results.read_text("utf-8")), "native") in TEXT


def test_table_of_newton_matches_the_results():
    results = ROOT / "docs/benchmarks/epyc-2-cores-newton.json"
    assert newton.markdown(json.loads(results.read_text("utf-8"))) in TEXT


def test_claims_match_the_results():
    results = ROOT / "experiments/cells/results/cells.json"
    assert study.claims_markdown(json.loads(results.read_text("utf-8"))) in TEXT


def test_table_of_training_matches_the_results():
    results = ROOT / "docs/benchmarks/xeon-2-cores-training.json"
    result = json.loads(results.read_text("utf-8"))
    assert training.markdown(result) in TEXT
    assert training.stream_line(result) in TEXT
    assert training.sweep_line(result) in TEXT


def test_ratios_of_long_sequences_match_the_results():
    results = ROOT / "experiments/long_sequences/results/long_sequences.json"
    growth = json.loads(results.read_text("utf-8"))["growth"]
    ratio = {(r["cell"], r["steps"]): r["parallel_ms"] / r["scan_ms"] for r in growth}
    match = re.search(r"minGRU takes (0\.\d+) and LRU (0\.\d+) of the time of `Scan`", TEXT)
    assert match is not None
    assert match.groups() == tuple(f"{ratio[cell, 2**16]:.2f}" for cell in ("minGRU", "LRU"))
