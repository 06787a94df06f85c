"""Commands with random flags, damaged run folders or random JSON exit with code 0, 1 or 2.

If a command fails, it prints one line of bounded length, which does not report an internal error.
"""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jrnn.cli import main

# The number of random examples of each test.
EXAMPLES = int(os.environ.get("JRNN_FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SPEC = "configs/adding.py:cell=gru,length=4,hidden=3"
SMALL = ["--task.train-size", "16", "--task.eval-size", "4", "--steps", "2", "--batch-size", "4"]
SMALL += ["--eval-every", "1", "--network.engine", "scan"]
exhaustive = pytest.mark.exhaustive


def run(args: list[str]) -> tuple[int, str]:
    """Runs a command, checks its exit code and standard error, and returns both."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(args)
        except SystemExit as error:
            code = error.code or 0
    message = stderr.getvalue()
    assert code in (0, 1, 2), (args, code, message)
    assert len(message) < 1500 and "internal error" not in message, (args, message)
    if code:
        assert message.count("\n") == 1 and message.startswith("jrnn: "), (args, message)
    else:
        assert stdout.getvalue(), args  # no success without a result
    return code, message


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with a complete run of a text task, a complete sweep, and three files of data."""
    folder = tmp_path_factory.mktemp("original")
    with contextlib.chdir(folder):
        Path("text.txt").write_text("the cat sat on the mat. " * 40)
        text = ["train", "configs/text.py:path=text.txt", "--task.window", "8"]
        assert (
            run([*text, "--network.cell.hidden-size", "3", *SMALL[4:], "--run-dir", "run"])[0] == 0
        )
        sweep = ["sweep", SPEC, "--over", "seed=0:2", *SMALL, "--run-dir", "sweep"]
        assert run(sweep)[0] == 0
        np.savez("mine.npz", xs=np.ones((20, 3, 2)), ys=np.arange(20) % 2)
        Path("mine.csv").write_text("a,b\n" + "1,2\n" * 60)
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NUMBERS = ["0", "-1", "1", "3", "1e400", "nan", "inf", "-0.0", "1e-400", str(2**31), str(2**64)]
NUMBERS += ["1" * 400, "0x10", "1_000", "1e3", "٣", " 2", "2 ", ""]
WORDS = [
    "none",
    "None",
    "true",
    "gru",
    "lstm",
    "adam",
    "data=2",
    "data=0,model=-1",
    "\x1b[31m",
    "é",
]
WORDS += ["x" * 5000, "--", "-", "--help", "seed=0:2", "a=b,c", "[1]", "{", "\n", "..", "/", "run"]
VALUES = st.sampled_from(NUMBERS + WORDS) | st.text(max_size=8).filter(
    lambda text: "\0" not in text
)
FLAGS = """steps batch-size accumulate eval-every patience save-every seed mesh run-dir resume
task.length task.train-size task.eval-size task.seed network.num-layers network.dropout
network.dtype network.engine network.pool network.embedding-size network.bidirectional
network.cell.hidden-size network.cell.heads network.cell.t-max optimizer.learning-rate
optimizer.algorithm optimizer.schedule optimizer.warmup optimizer.clip-norm optimizer.momentum
tbptt.k1 tbptt num-processes process-id coordinator-address unknown""".split()
PAIRS = st.tuples(st.sampled_from([f"--{name}" for name in FLAGS]), VALUES)
# With valid values, these flags make a command wait for other processes.
MULTIPROCESS = {"--num-processes", "--process-id", "--coordinator-address"}


def flags_of(pairs: list[tuple[str, str]]) -> list[str]:
    """Returns flags with values, except `MULTIPROCESS`; large numbers of steps become 3."""
    short = lambda flag, value: "3" if flag == "--steps" and value in ("1e3", str(2**31)) else value
    return [text for f, value in pairs if f not in MULTIPROCESS for text in (f, short(f, value))]


@exhaustive
@FUZZ
@given(pairs=st.lists(PAIRS, max_size=3))
def test_train_with_random_flags_exits_without_internal_error(pairs, folder):
    run(["train", SPEC, *SMALL, *flags_of(pairs)])


@exhaustive
@FUZZ
@given(pairs=st.lists(PAIRS, max_size=2), over=st.lists(VALUES, max_size=2))
def test_sweep_with_random_flags_exits_without_internal_error(pairs, over, folder):
    run(["sweep", SPEC, *SMALL, "--over", "seed=0:1", *over, *flags_of(pairs)])


@exhaustive
@FUZZ
@given(
    spec=st.sampled_from(
        ["configs/adding.py:", "configs/digits.py:order=row,", "configs/arrays.py:path=mine.npz,"]
        + [
            "configs/table.py:path=mine.csv,",
            "configs/text.py:path=text.txt,",
            "",
            "run",
            "mine.csv",
        ]
    ),
    name=st.sampled_from(["cell", "hidden", "length", "window", "kind", "horizon", "path"])
    | VALUES,
    value=VALUES,
)
def test_validate_with_random_arguments_prints_one_line(spec, name, value, folder):
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        try:
            main(["validate", f"{spec}{name}={value}"])
        except SystemExit as error:
            code = error.code
    assert code in (0, 2) and stdout.getvalue().count("\n") == 1


@exhaustive
@FUZZ
@given(args=st.lists(st.sampled_from(["ls", "eval", "sample", "train", "cells", "run"]) | VALUES))
def test_random_commands_exit_without_internal_error(args, folder):
    if args[:1] != ["bench"]:
        run(args)


@exhaustive
@FUZZ
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(["--prompt", "--length", "--temperature", "--seed"]), VALUES),
        max_size=3,
    )
)
def test_sample_with_random_flags_exits_without_internal_error(pairs, folder):
    run(["sample", "run", "--length", "3", *(text for pair in pairs for text in pair)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.just("type"), values, max_size=3)
    ),
    max_leaves=6,
)
COMMANDS = [["eval", "run"], ["sample", "run", "--length", "2"], ["train", "--resume", "run"]]


def replace_at(tree: Any, path: list[int], value: Any) -> Any:
    """Returns JSON in which one node is replaced.

    `path` has an index for each level, modulo the number of children; it may end at a leaf early.
    """
    if not path or not isinstance(tree, dict | list) or not tree:
        return value
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = keys[path[0] % len(keys)]
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[key] = replace_at(tree[key], path[1:], value)
    return copy


@exhaustive
@FUZZ
@given(
    command=st.sampled_from([*COMMANDS, ["sweep", "--resume", "sweep"]]),
    path=st.lists(st.integers(0, 30), max_size=5),
    value=JSON,
)
def test_config_with_random_json_causes_no_internal_error(command, path, value, folder, original):
    name = "sweep/sweep.json" if command[0] == "sweep" else "run/config.json"
    changed = replace_at(json.loads((original / name).read_text()), path, value)
    if "steps" in str(changed) and _max_steps(changed) > 10:
        return  # the number of steps may be valid, and would take long
    Path(name).write_text(json.dumps(changed))
    try:
        run(command)
    finally:
        _restore(original, folder)


def _max_steps(tree: Any) -> float:
    if isinstance(tree, list):
        return max(map(_max_steps, tree), default=0)
    if not isinstance(tree, dict):
        return 0
    own = tree.get("steps")
    own = own if isinstance(own, int | float) else 0
    return max([own, *map(_max_steps, tree.values())])


def _restore(original: Path, folder: Path) -> None:
    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    shutil.copytree(original, folder, dirs_exist_ok=True)


# After a failed read by orbax, its other reads find a closed event loop; the command hides this.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@exhaustive
@FUZZ
@given(data=st.data())
def test_run_with_a_damaged_file_causes_no_internal_error(data, folder, original):
    files = sorted(p for p in (folder / "run").rglob("*") if p.is_file() and p.suffix != ".png")
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    action = data.draw(st.sampled_from(["remove", "truncate", "change", "append", "folder"]))
    position = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if action == "remove":
        file.unlink()
    elif action == "folder":
        file.unlink()
        file.mkdir()
    elif action == "truncate":
        file.write_bytes(content[:position])
    elif action == "append":
        file.write_bytes(content + data.draw(st.binary(max_size=9)))
    elif content:
        content[position] = data.draw(st.integers(0, 255))
        file.write_bytes(content)
    try:
        # A changed config.py is not damaged, but another program.
        if file.name != "config.py":
            run(data.draw(st.sampled_from(COMMANDS)))
    finally:
        _restore(original, folder)


@exhaustive
@FUZZ
@given(data=st.data(), name=st.sampled_from(["mine.npz", "mine.csv", "text.txt"]))
def test_damaged_data_cause_no_internal_error(data, name, folder, original):
    content = bytearray((original / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    Path(name).write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(None))])
    spec = {
        "mine.npz": "configs/arrays.py:path=mine.npz,kind=classification",
        "mine.csv": "configs/table.py:path=mine.csv,window=4",
        "text.txt": "configs/text.py:path=text.txt",
    }[name]
    flags = ["--network.cell.hidden-size", "2", *SMALL[4:], "--run-dir", "new"]
    try:
        run(["train", spec, *flags])
    finally:
        _restore(original, folder)
