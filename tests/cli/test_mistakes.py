"""What users do wrong, from the README outward: each gets one line that says what to do."""

import math
from pathlib import Path

import numpy as np
import pytest

from jrnn.cli import main
from tests.cli.test_errors import run_and_fail

SMALL = ["--steps", "2", "--eval-every", "2", "--batch-size", "8"]
SMALL += ["--network.cell.hidden-size", "4"]


def write_table(path, hours, *, separator=",", decimal=".", hole=None, header=True):
    lines = [separator.join(("date", "load", "temp"))] if header else []
    for hour in hours:
        load = f"{100 + 20 * math.sin(hour * math.pi / 12):.2f}".replace(".", decimal)
        cells = f"2024-01-{1 + hour // 24:02d} {hour % 24:02d}:00", load, str(hour % 5)
        lines.append(separator.join((cells[0], "" if hour == hole else load, cells[2])))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with files of users, and the runs `arrays`, `forecast` and `language`."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_table(folder / "load.csv", range(300))
    write_table(folder / "hole.csv", range(300), hole=50)
    write_table(folder / "semicolons.csv", range(300), separator=";", decimal=",")
    write_table(folder / "no_header.csv", range(300), header=False)
    write_table(folder / "unsorted.csv", [*range(200), 5, *range(200, 300)])
    (folder / "constant.csv").write_text("load\n" + "5\n" * 300)
    (folder / "word.csv").write_text("load\n" + "1\n2\n" * 50 + "oops\n" + "3\n4\n" * 50)
    (folder / "other.csv").write_text("load\n" + "1\n2\n" * 50)
    (folder / "empty.csv").write_text("")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    (folder / "not_a_config.py").write_text("STEPS = 3\n")
    xs = np.random.default_rng(0).normal(size=(80, 6, 3)).astype(np.float32)
    ys = (xs[:, 0, 0] > 0).astype(int)
    np.savez(folder / "a.npz", xs=xs, ys=ys)
    np.savez(folder / "new.npz", xs=xs[:5])
    np.savez(folder / "wide.npz", xs=np.ones((5, 6, 4), np.float32))
    np.savez(folder / "other_names.npz", x=xs, y=ys)
    np.save(folder / "a.npy", xs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["train", "configs/arrays.py:path=a.npz", *SMALL, "--run-dir", "arrays"])
        table = ["configs/table.py:path=load.csv,horizon=24", "--task.window", "32"]
        main(["train", *table, *SMALL, "--run-dir", "forecast"])
        main(["train", "configs/text.py:path=text.txt", *SMALL, "--run-dir", "language"])
    return folder


ARRAYS, TABLE = "configs/arrays.py:path=a.npz", "configs/table.py:path="
DIGITS = "configs/digits.py"
COMMANDS = [
    (["help"], "got 'help'; did you mean '--help'?"),
    (["version"], "got 'version'; did you mean '--version'?"),
    (["trian"], "did you mean 'train'?"),
    # The first argument of train.
    (["train", "digits"], "no such config file; did you mean 'configs/digits.py'?"),
    (["train", "load.csv"], "train on it with: jrnn train configs/table.py:path=load.csv"),
    (["train", "a.npz"], "train on it with: jrnn train configs/arrays.py:path=a.npz"),
    (["train", "text.txt"], "train on it with: jrnn train configs/text.py:path=text.txt"),
    (["train", "arrays"], "the folder of a run; resume it with: jrnn train --resume arrays"),
    (["train", "not_a_config.py"], "must define a function get_config(...)"),
    (["train", "configs/table.py", "path=load.csv"], "write configs/table.py:path=load.csv"),
    (["train", f"{TABLE}a.csv", "horizon=24"], "write configs/table.py:path=a.csv,horizon=24"),
    (["train", f"{TABLE}a,b.csv"], "by a flag, such as --task.path 'a,b.npz'"),
    (["train", "configs/table.py", "load.csv"], "'load.csv' is one argument too many"),
    (["train", f"{DIGITS}:hiden=3"], "no argument 'hiden'; did you mean 'hidden'?"),
    (["train", f"{TABLE}load.csv,targets=load"], "settings are flags: --task.targets load"),
    (["train", f"{TABLE}load.csv,horizon=day"], "argument horizon must be an int, got 'day'"),
    (["train", f"{TABLE}load.csv,horizon=0"], "horizon must be a positive int, got 0"),
    (["train", f"{ARRAYS},kind=classify"], "got 'classify'; did you mean 'classification'?"),
    # Flags.
    (["train", DIGITS, "--lr", "1e-3"], "--lr is not a flag; did you mean '--optimizer.learning"),
    (["train", DIGITS, "--optim.lr=1"], "did you mean '--optimizer.learning-rate'?"),
    (["train", DIGITS, "--progress", "1"], "--progress is not a flag"),
    (["train", DIGITS, "--optimizer.options", "b3", "1"], "must be one of b1, b2"),
    (["train", DIGITS, "--epochs", "3"], "--epochs is not a flag; did you mean '--steps'?"),
    (["train", DIGITS, "--cell", "gru"], "argument of the config: configs/digits.py:cell=gru"),
    (["train", DIGITS, "--network.cell", "gru"], "of the config: configs/digits.py:cell=gru"),
    (["train", DIGITS, "--hidden=64"], "did you mean '--network.cell.hidden-size'?"),
    (["train", DIGITS, "--device", "cuda"], "set the environment variable JAX_PLATFORMS"),
    (["train", DIGITS, "--optimizer", "sgd"], "did you mean '--optimizer.algorithm'?"),
    (["train", DIGITS, "--stepz", "3"], "--stepz is not a flag"),
    (["train", DIGITS, "--batch_size", "8", "--stepz", "3"], "--stepz is not a flag"),
    (["train", DIGITS, "--json", "--quiet"], "--quiet must be given without --json"),
    (["train", DIGITS, "--find-learning-rate", "--wandb", "p"], "it only prints, got --wandb;"),
    (["train", DIGITS, "--steps", "1,000"], "--steps must be an int, got '1,000'"),
    (["train", DIGITS, "--steps", "10k"], "--steps must be an int, got '10k'"),
    (["train", DIGITS, "--steps"], "--steps must have a value, got none"),
    (["train", DIGITS, "--steps=-5"], "steps must be a positive int, got -5"),
    (["train", DIGITS, "--network.dtype", "fp16"], "must be one of float32, bfloat16, got 'fp16'"),
    (["train", DIGITS, "--optimizer.clip-norm", "no"], "must be a number or None, got 'no'"),
    (["train", DIGITS, "--optimizer.algorithm", "adamm"], "got 'adamm'; did you mean 'adam'?"),
    (["train", DIGITS, "--class-weights", "1", "x"], "numbers or balanced or None, got '1 x'"),
    (["train", DIGITS, "--mesh", "gpu"], "mesh must be of the form data=8"),
    # Files of data.
    (["train", f"{TABLE}laod.csv"], "no file 'laod.csv'"),
    (["train", f"{TABLE}laod.csv"], "did you mean 'load.csv'?"),
    (["train", f"{TABLE}load.csv", "--task.columns", "load,temp"], "--task.columns load temp"),
    (["train", f"{TABLE}hole.csv", *SMALL], "line 52, column 'load' must be a finite number"),
    (["train", f"{TABLE}hole.csv", *SMALL], "train with --task.missing fill"),
    (["train", f"{TABLE}semicolons.csv"], "set --task.separator ';'"),
    (
        ["train", f"{TABLE}no_header.csv"],
        "got the values 2024-01-01 00:00, 100.00, 0; add a header",
    ),
    (["train", f"{TABLE}unsorted.csv"], "dates must increase from row to row"),
    (["train", f"{TABLE}constant.csv"], "target must vary in the training part, got load with the"),
    (["train", f"{TABLE}word.csv"], "line 102, column 'load' must be a finite number, got 'oops'"),
    (["train", f"{TABLE}empty.csv"], "must have a header line of column names, and rows"),
    (["train", f"{TABLE}a.npz"], "train on arrays with configs/arrays.py"),
    (["train", f"{TABLE}load.csv", "--task.targets", "date"], "got the dates of 'date'"),
    (["train", f"{TABLE}load.csv,horizon=1000"], "rows are enough"),
    (["train", "configs/arrays.py:path=load.csv"], "train on a table with configs/table.py"),
    (["train", "configs/arrays.py:path=a.npy"], "write it with np.savez(path, xs=xs, ys=ys)"),
    (["train", "configs/arrays.py:path=other_names.npz"], "arrays xs and ys, got x, y"),
    # Runs.
    (["train", ARRAYS, *SMALL, "--run-dir", "arrays"], "must be a new or empty folder, got arrays"),
    (["train", "--resume", "aray"], "no such folder; did you mean 'arrays'?"),
    (["train", "--resume", "arrays/checkpoints"], "got a part of one; use arrays"),
    (["train", ARRAYS, "--resume", "arrays"], "start a new run: jrnn train CONFIG --init-from"),
    (["train", "--resume", "arrays", "--steps", "1"], "--steps must be at least the 2 of the run"),
    (["train", ARRAYS, *SMALL[:-1], "8", "--init-from", "arrays"], "pass --init-skip body"),
    (["train", ARRAYS, *SMALL[:-1], "8", "--init-from=arrays", "--trust"], "--init-skip body"),
    (["train", ARRAYS, *SMALL, "--freeze", "bdy"], "the paths are body.rnns.0.weights.b, "),
    (
        ["train", ARRAYS, *SMALL, "--freeze", "body", "head"],
        "must leave at least one parameter that is trained",
    ),
    (["train", ARRAYS, *SMALL, "--keep-encoding"], "keep_encoding needs init_from"),
    # Using a run.
    (
        ["predict"],
        "RUN (the folder of the run) and DATA (a file with examples) must be given",
    ),
    (["predict", "arrays"], "DATA (a file with examples) must be given; see jrnn predict --help"),
    (["predict", "new.npz", "arrays", "--out", "p.csv"], "the folder of a run, got a file"),
    (["predict", "arrays", "new.npz", "--outt", "p.csv"], "did you mean '--out'?"),
    (["predict", "arrays", "new.npz", "--out", "p.xlsx"], "one of .npz, .csv, .jsonl, got '.xlsx'"),
    (["predict", "arrays", "new.npz", "--out", "no/p.csv"], "create the folder no"),
    (
        ["predict", "arrays", "wide.npz", "--out", "p.csv"],
        "xs must have shape [N, T, 3], got (5, 6",
    ),
    (["predict", "arrays", "nwe.npz", "--out", "p.csv"], "did you mean 'new.npz'?"),
    (["predict", "arrays", "load.csv", "--out", "p.csv"], "in the format of the training data"),
    (["predict", "forecast", "other.csv", "--out", "p.csv"], "date, load, temp, got none named 'd"),
    (["predict", "forecast", "semicolons.csv", "--out", "p.csv"], "format of the training data"),
    (["predict", "forecast", "hole.csv", "--out", "p.csv"], "train with --task.missing fill"),
    (["predict", "forecast", "load.csv", "--horizon", "48"], "--horizon is not a flag"),
    (["eval", "."], "got a folder of runs, such as"),
    (["eval", "arrays", "forecast"], "'forecast' is one argument too many"),
    (["eval", "arrays", "--split", "val"], "got 'val'; did you mean 'validation'?"),
    (["eval", "arrays", "--data", "new.npz"], "evaluation needs targets, got examples without ys"),
    (["eval", "arrays", "--split", "test", "--data", "a.npz"], "without --split and --backtest"),
    (["sample", "arrays"], "must be a run of a text task, got Arrays"),
    (["sample", "language", "--prompt", "Q"], "only characters of the training text, got 'Q'"),
    (["sample", "language", "--temperature", "hot"], "--temperature must be a number, got 'hot'"),
    (["report", "nowhere"], "nowhere must be the folder of a run, got no such folder"),
    (["report", "a.npz"], "a.npz must be the folder of a run, got a file"),
    (["report", "arrays", "--out", "page.pdf"], "--out must be a file with the suffix .html"),
    (["compare", "arrays"], "there must be at least two runs, got 1"),
    (["ls", "runs", "nowhere"], "must be a folder of runs, got no such folder"),
    (["ls", "models"], "must be one of cells, transforms, tasks, engines, configs, runs"),
    (["sweep", DIGITS, "--over", "seed"], "must be NAME=VALUES such as seed=0:16, got 'seed'"),
    (["sweep", DIGITS, "--over", "optimizer.lr=1,2"], "did you mean '--optimizer.learning-rate'?"),
]


@pytest.mark.parametrize(("args", "message"), COMMANDS, ids=[" ".join(c[0])[:60] for c in COMMANDS])
def test_mistake_is_answered_in_one_line_and_writes_nothing(
    args, message, folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    before = sorted(Path().iterdir())
    assert message in run_and_fail(args, capsys)
    assert sorted(Path().iterdir()) == before
