"""The command line: output, files and exit codes."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jrnn import config
from jrnn.cells import REGISTRY as CELLS
from jrnn.cli import inspect, main
from jrnn.cli.completion import FLAG
from jrnn.cli.main import _load_commands
from jrnn.engines import REGISTRY as ENGINES
from jrnn.flag_hints import field_flags
from jrnn.tasks import REGISTRY as TASKS
from jrnn.transforms import REGISTRY as TRANSFORMS

SMALL = ["--steps", "4", "--eval-every", "2", "--network.cell.hidden-size", "8"]


def join_words(text):
    """Returns the printed words, without table borders and line breaks."""
    return " ".join(re.sub("[─-╿]", " ", text).split())


@pytest.fixture(autouse=True)
def run_in_tmp_path(tmp_path, monkeypatch):
    """Runs every command in an empty folder, without a checkout of jrnn."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """The folder of a run of a text task."""
    folder = tmp_path_factory.mktemp("text")
    source = folder / "source.txt"
    source.write_text("the cat sat on the mat. " * 400)
    run = folder / "run"
    spec = f"configs/text.py:path={source}"
    main(["train", spec, "--run-dir", str(run), *SMALL, "--task.window", "16"])
    return run


def run_and_fail(args, capsys, code=2):
    """Runs a command that must fail, and returns its error message."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == code
    output = capsys.readouterr().err
    assert "Traceback" not in output
    return join_words(output)


def test_train_writes_a_run_that_eval_reads(tmp_path, capsys):
    main(["train", "configs/digits.py:cell=gru,order=row", "--run-dir", "run", *SMALL])
    output = join_words(capsys.readouterr().out)
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert f"{result['test']:.4f}" in output and "run folder: run" in output
    assert "run/figure.png" in output and (run / "figure.png").stat().st_size > 10_000
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "config.py",
        "data.json",
        "metrics.jsonl",
        "checkpoints",
        ".lock",
        "result.json",
        "figure.png",
    }
    assert config.read(run / "config.json").network.cell == CELLS["gru"](8)
    main(["eval", "run"])
    assert f"{result['test']:.4f}" in join_words(capsys.readouterr().out)


SWEEP = ["sweep", "configs/digits.py:order=row", "--over", "seed=0:2", "network.dropout=0.1,0.2"]


def test_train_and_eval_give_the_same_results_without_jit(capsys):
    args = ["train", "configs/adding.py", "--steps", "2", "--eval-every", "2", "--batch-size", "8"]
    args += ["--task.length", "6", "--task.train-size", "16", "--task.eval-size", "8"]
    args += ["--network.cell.hidden-size", "4"]
    main([*args, "--run-dir", "jit"])
    with jax.disable_jit():
        main([*args, "--run-dir", "eager"])
        capsys.readouterr()
        main(["eval", "eager"])
    results = [json.loads(Path(run, "result.json").read_text()) for run in ("eager", "jit")]
    test, expected = (result["test"] for result in results)
    assert test == pytest.approx(expected, rel=1e-5) and f"{test:.4f}" in capsys.readouterr().out


def test_sweep_writes_figure_and_run_of_best_trial_and_can_be_resumed(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)  # an import of Ray would raise
    main([*SWEEP, *SMALL, "--run-dir", "all"])
    output = join_words(capsys.readouterr().out)
    assert "4 trials, 1 compilation" in output and "all/figure.png" in output
    result = json.loads((tmp_path / "all/result.json").read_text())
    metrics = [trial["validation"] for trial in result["trials"]]
    assert metrics[result["best"]] == max(metrics)
    assert result["trials"][3]["values"] == {"seed": "1", "network.dropout": "0.2"}
    assert (tmp_path / "all/figure.png").stat().st_size > 10_000
    main(["eval", "all/best"])
    assert f"{result['trials'][result['best']]['test']:.4f}" in join_words(capsys.readouterr().out)
    main(["sweep", "--resume", "all"])
    again = json.loads((tmp_path / "all/result.json").read_text())
    assert again["trials"] == result["trials"] and again["best"] == result["best"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sweep"], "the first argument must be a config"),
        (["sweep", "configs/digits.py"], "--over must be given at least once"),
        ([*SWEEP, "--random", "0"], "random must be a positive int"),
        ([*SWEEP, "--batch-size", "5000"], "trial 0: train: batch_size must be at most"),
        ([*SWEEP, "--stepz", "5"], "--steps"),
        (["sweep", "--resume", "nowhere"], "must be the folder of a sweep"),
        (["sweep", "--resume"], "--resume must have the folder of a sweep"),
        (["sweep", "--resume", "a", "--steps", "5"], "no other arguments than --trust, --on ray"),
        ([*SWEEP, "--on", "ray"], "--on ray needs Ray; install it with: pip install 'jrnn[ray]'"),
        ([*SWEEP, "--ray-cpus", "2"], "--ray-gpus need --on ray"),
    ],
)
def test_invalid_sweep_command_exits_with_message(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if Ray was not installed
    assert message in run_and_fail(args, capsys)
    assert not (tmp_path / "runs").exists()


def test_train_creates_a_new_folder_each_time(tmp_path):
    for _ in range(2):
        main(["train", "configs/adding.py:runlocal=true", *SMALL])
    assert len(list((tmp_path / "runs").glob("adding-lstm-*"))) == 2


def test_train_into_non_empty_folder_exits(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    output = run_and_fail(["train", "configs/digits.py", "--run-dir", "run"], capsys)
    assert "must be a new or empty folder" in output
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_train_on_user_arrays_writes_the_accuracy(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez("mine.npz", xs=rng.normal(size=(60, 5, 2)), ys=rng.integers(0, 3, 60))
    spec = "configs/arrays.py:path=mine.npz,kind=classification"
    main(["train", spec, "--run-dir", "run", *SMALL, "--batch-size", "8"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metric"] == "accuracy"


def test_train_on_a_user_table_prints_the_error_in_original_units(tmp_path, capsys):
    rows = "\n".join(f"{np.sin(k / 5):.4f},{k % 7}" for k in range(400))
    (tmp_path / "mine.csv").write_text(f"load,day\n{rows}\n")
    spec = "configs/table.py:path=mine.csv,window=16,horizon=3"
    main(["train", spec, "--run-dir", "run", *SMALL, "--task.targets", "load"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["baseline"]["name"] == "persistence"
    assert "test RMSE in original units" in join_words(capsys.readouterr().out)


def test_run_with_changed_data_exits(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("the cat sat on the mat. " * 400)
    spec = "configs/text.py:path=mine.txt"
    main(["train", spec, "--run-dir", "run", *SMALL, "--task.window", "16"])
    (tmp_path / "mine.txt").write_text("the kat sat on the mat. " * 400)
    capsys.readouterr()
    for command in (["eval"], ["train", "--resume"]):
        assert "have changed" in run_and_fail([*command, "run"], capsys)
    main(["sample", "run", "--length", "10"])  # does not need the data


def test_sample_prints_prompt_and_is_reproducible(text_run, capsys):
    samples = []
    for seed in ("1", "1", "2"):
        main(["sample", str(text_run), "--prompt", "the ", "--length", "30", "--seed", seed])
        samples.append(capsys.readouterr().out)
    assert samples[0] == samples[1] != samples[2]
    assert samples[0].startswith("the ") and len(samples[0]) == len("the ") + 30 + 1


def test_invalid_sample_command_exits_with_message(text_run, tmp_path, capsys):
    assert "got 'Ж'" in run_and_fail(["sample", str(text_run), "--prompt", "Ж"], capsys)
    assert "at least one" in run_and_fail(["sample", str(text_run), "--prompt", ""], capsys)
    for length in ("0", "2000000000", "1000000000000"):
        assert "length must be an int from 1 to 1000000" in run_and_fail(
            ["sample", str(text_run), "--prompt", "t", "--length", length], capsys
        )
    main(["train", "configs/adding.py:runlocal=true", "--run-dir", "adding", *SMALL])
    capsys.readouterr()
    assert "must be a run of a text task, got Adding" in run_and_fail(["sample", "adding"], capsys)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("cells", list(CELLS)),
        ("transforms", list(TRANSFORMS)),
        ("tasks", list(TASKS)),
        ("engines", list(ENGINES)),
        ("configs", [f"configs/{path.name}" for path in config.list_configs()]),
    ],
)
def test_ls_prints_one_line_per_name(kind, names, capsys):
    main(["ls", kind])
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_ls_cells_counts_parameters(capsys):
    main(["ls", "cells"])
    assert f"{4 * 128 * (128 + 128 + 1):,}" in capsys.readouterr().out


def test_every_cell_has_a_paper():
    papers = {name: source for name, _, _, source, _ in inspect.make_cell_rows()}
    assert papers["lstm"] == "Hochreiter and Schmidhuber, 1997"
    assert papers["mut1"] == "Jozefowicz et al., 2015"
    assert [name for name, source in papers.items() if not source] == []


def test_validate_reports_valid_and_invalid_configs(capsys):
    main(["validate", "configs/digits.py", "configs/text.py:cell=gru"])
    assert re.findall(r"\w*valid\b", capsys.readouterr().out) == ["valid"] * 2
    with pytest.raises(SystemExit) as exit_info:
        main(["validate", "configs/digits.py:hiden=3", "configs/digit.py", "configs/text.py"])
    assert exit_info.value.code == 2
    out = join_words(capsys.readouterr().out)
    assert re.findall(r"\w*valid\b", out) == ["invalid", "invalid", "valid"]
    assert "did you mean 'configs/digits.py'" in out


COMMANDS = [*map(str.split, _load_commands()), ["bench", "newton"], ["bench", "train"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_with_known_flags(command, capsys):
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    text = capsys.readouterr().out
    example = re.search(rf"[Ee]xamples?:\s+(jrnn {' '.join(command)}\b.*)", text)
    assert example is not None
    others = text.replace(example[1], "")
    fields = field_flags(config.load("configs/digits.py"))
    assert {*FLAG.findall(example[1])} <= {*FLAG.findall(others), *fields}


def test_bench_lists_its_flags(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", "--help"])
    assert exit_info.value.code == 0
    output = join_words(capsys.readouterr().out)
    for flag in ("--cells", "--shapes", "--engines", "--peers", "--sweep", "--out", "--figure"):
        assert flag in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "the first argument must be a config"),
        (["train", "configs/digit.py"], "did you mean 'configs/digits.py'"),
        (["train", "configs/digits.py:cell=lstn"], "did you mean 'lstm'"),
        (["train", "configs/digits.py:order=rows"], "row"),
        (
            ["train", "configs/digits.py", "--optimizer.learning-rat", "1"],
            "--optimizer.learning-rate",
        ),
        (["train", "configs/digits.py", "--steps", "0"], "steps must be a positive int"),
        (["train", "configs/arrays.py:path=gone.npz"], "gone.npz"),
        (["train", "configs/text.py", "--network.bidirectional"], "contain the target of a step"),
        (["train", "configs/digits.py", "--batch-size", "5000"], "training examples, got 5000"),
        (["train", "configs/digits.py", "--network.engine", "scann"], "did you mean 'scan'"),
        (["train", "configs/digits.py", "--seed", "-1"], "seed must be an int from 0"),
        (["eval", "nowhere"], "must be the folder of a run"),
        (["eval"], "RUN (the folder of the run) must be given"),
        (["ls"], "the argument must be one of cells"),
        (["ls", "cell"], "did you mean 'cells'"),
        (["validate"], "must be at least one config"),
        (["bench", "--peers", "haiko"], "did you mean 'haiku'"),
        (["bench", "--cells", "gro"], "did you mean 'gru'"),
        (["bench", "--shapes", "7"], "shape must be an index from 0 to 4"),
    ],
)
def test_invalid_command_exits_with_message(args, message, capsys, tmp_path):
    assert message in run_and_fail(args, capsys)
    assert not (tmp_path / "runs").exists()


def test_non_finite_loss_exits_with_code_1(capsys):
    args = ["train", "configs/adding.py:runlocal=true", "--run-dir", "run", *SMALL]
    args += [
        "--optimizer.algorithm",
        "sgd",
        "--optimizer.learning-rate",
        "1e38",
        "--optimizer.clip-norm",
        "None",
    ]
    assert "at step" in run_and_fail(args, capsys, code=1)


def test_help_lists_the_commands(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"jrnn {name} " in out for name in ("train", "eval", "sample", "ls", "validate"))


@pytest.mark.parametrize("command", ["train", "sweep", "eval", "sample", "ls", "validate"])
def test_help_of_a_command_prints_its_usage(command, capsys):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    captured = capsys.readouterr()
    assert f"usage: jrnn {command}" in captured.out and not captured.err


def test_config_help_lists_arguments_and_flags(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "configs/digits.py", "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert "order: Literal" in out.replace("typing.", "") and "--optimizer.learning-rate" in out


def test_version_is_printed(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("jrnn ")


def test_module_runs_as_a_command():
    process = subprocess.run(
        [sys.executable, "-m", "jrnn", "ls", "engines"], capture_output=True, text=True, check=True
    )
    assert "scan" in process.stdout
