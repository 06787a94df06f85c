"""The command line as a user meets it: what it prints, what it leaves, and its exit codes."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from jrnn import config
from jrnn.cells import REGISTRY as CELLS
from jrnn.cli import inspect, main
from jrnn.engines import REGISTRY as ENGINES
from jrnn.tasks import REGISTRY as TASKS
from jrnn.transforms import REGISTRY as TRANSFORMS

SMALL = ["--steps", "4", "--eval-every", "2", "--network.cell.hidden-size", "8"]


def words(text):
    """What was printed, without the lines of tables and the breaks of a narrow terminal."""
    return " ".join(re.sub("[─-╿]", " ", text).split())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in a folder of its own, as after an installation."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    source = folder / "source.txt"
    source.write_text("the cat sat on the mat. " * 400)
    run = folder / "run"
    spec = f"configs/text.py:path={source}"
    main(["train", spec, "--run-dir", str(run), *SMALL, "--task.window", "16"])
    return run


def refused(args, capsys, code=2):
    """Runs a command that must fail; returns what it said, which is no traceback."""
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return words(said)


def test_train_leaves_a_run_that_eval_reads(tmp_path, capsys):
    main(["train", "configs/digits.py:cell=gru,order=row", "--run-dir", "run", *SMALL])
    said = words(capsys.readouterr().out)
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert f"{result['test']:.4f}" in said and "run folder: run" in said
    assert "run/figure.png" in said and (run / "figure.png").stat().st_size > 10_000
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "config.py",
        "data.txt",
        "metrics.jsonl",
        "checkpoints",
        ".lock",
        "result.json",
        "figure.png",
    }
    assert config.read(run / "config.json").network.cell == CELLS["gru"](8)
    main(["eval", "run"])
    assert f"{result['test']:.4f}" in words(capsys.readouterr().out)


SWEEP = ["sweep", "configs/digits.py:order=row", "--over", "seed=0:2", "network.dropout=0.1,0.2"]


def test_sweep_leaves_a_table_a_figure_and_its_best_member_as_a_run(tmp_path, capsys):
    main([*SWEEP, *SMALL, "--run-dir", "all"])
    said = words(capsys.readouterr().out)
    assert "4 trials, 1 compilation" in said and "all/figure.png" in said
    result = json.loads((tmp_path / "all/result.json").read_text())
    reached = [trial["validation"] for trial in result["trials"]]
    assert reached[result["best"]] == max(reached)
    assert result["trials"][3]["values"] == {"seed": "1", "network.dropout": "0.2"}
    assert (tmp_path / "all/figure.png").stat().st_size > 10_000
    main(["eval", "all/best"])
    assert f"{result['trials'][result['best']]['test']:.4f}" in words(capsys.readouterr().out)
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
        (["sweep", "--resume", "nowhere"], "is not a sweep"),
        (["sweep", "--resume"], "takes the folder of a sweep"),
    ],
)
def test_what_a_user_gets_wrong_in_a_sweep_is_said_in_a_line(args, message, capsys, tmp_path):
    assert message in refused(args, capsys)
    assert not (tmp_path / "runs").exists()


def test_train_makes_a_new_folder_each_time(tmp_path):
    for _ in range(2):
        main(["train", "configs/adding.py:runlocal=true", *SMALL])
    assert len(list((tmp_path / "runs").glob("adding-lstm-*"))) == 2


def test_train_never_writes_into_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    said = refused(["train", "configs/digits.py", "--run-dir", "run"], capsys)
    assert "holds something already" in said
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_run_on_arrays_of_ones_own(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez("mine.npz", xs=rng.normal(size=(60, 5, 2)), ys=rng.integers(0, 3, 60))
    spec = "configs/arrays.py:path=mine.npz,kind=classification"
    main(["train", spec, "--run-dir", "run", *SMALL, "--batch-size", "8"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metric"] == "accuracy"


def test_a_run_on_a_table_of_ones_own(tmp_path, capsys):
    rows = "\n".join(f"{np.sin(k / 5):.4f},{k % 7}" for k in range(400))
    (tmp_path / "mine.csv").write_text(f"load,day\n{rows}\n")
    spec = "configs/table.py:path=mine.csv,window=16,horizon=3"
    main(["train", spec, "--run-dir", "run", *SMALL, "--task.targets", "load"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["baseline"]["name"] == "persistence"
    assert "test RMSE in your units" in words(capsys.readouterr().out)


def test_a_run_whose_data_have_changed_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("the cat sat on the mat. " * 400)
    spec = "configs/text.py:path=mine.txt"
    main(["train", spec, "--run-dir", "run", *SMALL, "--task.window", "16"])
    (tmp_path / "mine.txt").write_text("the kat sat on the mat. " * 400)
    capsys.readouterr()
    for command in ("eval", "sample"):
        assert "are not what they were" in refused([command, "run"], capsys)


def test_sample_prints_the_prompt_and_repeats_by_seed(text_run, capsys):
    drawn = []
    for seed in ("1", "1", "2"):
        main(["sample", str(text_run), "--prompt", "the ", "--length", "30", "--seed", seed])
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith("the ") and len(drawn[0]) == len("the ") + 30 + 1


def test_sample_refuses_what_it_cannot_do(text_run, tmp_path, capsys):
    assert "has no 'Ж'" in refused(["sample", str(text_run), "--prompt", "Ж"], capsys)
    assert "at least one" in refused(["sample", str(text_run), "--prompt", ""], capsys)
    assert "length must be" in refused(
        ["sample", str(text_run), "--prompt", "t", "--length", "0"], capsys
    )
    main(["train", "configs/adding.py:runlocal=true", "--run-dir", "adding", *SMALL])
    capsys.readouterr()
    assert "not a run on text" in refused(["sample", "adding"], capsys)


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
def test_ls_prints_one_line_each(kind, names, capsys):
    main(["ls", kind])
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_ls_counts_the_parameters(capsys):
    main(["ls", "cells"])
    assert f"{4 * 128 * (128 + 128 + 1):,}" in capsys.readouterr().out


def test_every_cell_has_a_paper():
    papers = {name: source for name, _, _, source, _ in inspect.cell_rows()}
    assert papers["lstm"] == "Hochreiter and Schmidhuber, 1997"
    assert papers["mut1"] == "Jozefowicz et al., 2015"
    assert [name for name, source in papers.items() if not source] == []


def test_validate_says_good_and_bad(capsys):
    main(["validate", "configs/digits.py", "configs/text.py:cell=gru"])
    assert capsys.readouterr().out.count("good") == 2
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "configs/digits.py:hiden=3", "configs/digit.py", "configs/text.py"])
    assert stopped.value.code == 2
    out = words(capsys.readouterr().out)
    assert out.count("bad ") == 2 and out.count("good ") == 1
    assert "did you mean 'configs/digits.py'" in out


def test_bench_lists_its_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0
    said = words(capsys.readouterr().out)
    for flag in ("--cells", "--shapes", "--engines", "--peers", "--sweep", "--out", "--figure"):
        assert flag in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "name a config first"),
        (["train", "configs/digit.py"], "did you mean 'configs/digits.py'"),
        (["train", "configs/digits.py:cell=lstn"], "did you mean 'lstm'"),
        (["train", "configs/digits.py:order=rows"], "row"),
        (
            ["train", "configs/digits.py", "--optimizer.learning-rat", "1"],
            "--optimizer.learning-rate",
        ),
        (["train", "configs/digits.py", "--steps", "0"], "steps must be a positive int"),
        (["train", "configs/arrays.py:path=gone.npz"], "gone.npz"),
        (["train", "configs/text.py", "--network.bidirectional"], "what it has to predict"),
        (["train", "configs/digits.py", "--batch-size", "5000"], "training examples, got 5000"),
        (["train", "configs/digits.py", "--network.engine", "scann"], "did you mean 'scan'"),
        (["train", "configs/digits.py", "--seed", "-1"], "seed must be at least 0"),
        (["eval", "nowhere"], "is not a run"),
        (["eval"], "the run's folder"),
        (["ls"], "name one of cells"),
        (["ls", "cell"], "did you mean 'cells'"),
        (["validate"], "name one or more configs"),
        (["bench", "--peers", "haiko"], "did you mean 'haiku'"),
        (["bench", "--cells", "gro"], "did you mean 'gru'"),
        (["bench", "--shapes", "7"], "a shape is an index from 0 to 4"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_line(args, message, capsys, tmp_path):
    assert message in refused(args, capsys)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_ends_with_code_1(capsys):
    args = ["train", "configs/adding.py:runlocal=true", "--run-dir", "run", *SMALL]
    args += [
        "--optimizer.algorithm",
        "sgd",
        "--optimizer.learning-rate",
        "1e38",
        "--optimizer.clip-norm",
        "None",
    ]
    assert "at step" in refused(args, capsys, code=1)


def test_help_names_the_commands(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"jrnn {name} " in out for name in ("train", "eval", "sample", "ls", "validate"))


def test_help_of_a_config_lists_its_arguments_and_its_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "configs/digits.py", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "order: Literal" in out.replace("typing.", "") and "--optimizer.learning-rate" in out


def test_version_is_said(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("jrnn ")


def test_the_installed_command_runs():
    done = subprocess.run(
        [sys.executable, "-m", "jrnn", "ls", "engines"], capture_output=True, text=True, check=True
    )
    assert "scan" in done.stdout
