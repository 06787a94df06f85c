"""Untrusted run folders: no code in them runs, and the command exits with one short line."""

import json
import os
import shutil
from pathlib import Path

import pytest

from jrnn.cli import main
from jrnn.messages import MAX_MESSAGE
from jrnn.train.run.checkpoint import _checksum_of_json

SMALL = ["--steps", "2", "--eval-every", "2", "--network.cell.hidden-size", "4"]
MARKER = "executed"
"""Name of the file that the code in a hostile folder writes."""
CODE = f"open({MARKER!r}, 'w').close()\nclass Stranger: pass\n"
# JSON that creates the marker if it is decoded as a call.
CALL = {"type": "subprocess:getoutput", "cmd": f"touch {MARKER}"}
COMMANDS = (["eval"], ["sample"], ["report"], ["train", "--resume"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    main(["train", "configs/digits.py:order=row", "--run-dir", str(folder), *SMALL])
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the run, which is the folder `run` of the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    return Path("run")


def run_and_fail(args, capsys):
    """Runs a command that must exit with code 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("jrnn: ") and line.count("\n") == 1
    assert len(line) <= MAX_MESSAGE + 10 and "Traceback" not in line
    assert all(c.isprintable() for c in line[:-1])
    assert not Path(MARKER).exists()
    return line


def edit_config(path, change):
    """Applies `change` to the experiment in a saved config."""
    saved = json.loads(path.read_text())
    change(saved["experiment"])
    path.write_text(json.dumps(saved))


EDITS = {
    "call in a field": (lambda e: e.update(mesh=CALL), "subprocess:getoutput, which is not in"),
    "call as the cell": (lambda e: e["network"].update(cell=CALL), "is not in jrnn; pass --trust"),
    "call in a tuple": (lambda e: e["task"].update(order=[[CALL]]), "is not in jrnn"),
    "function of jrnn": (
        lambda e: e["network"].update(cell={"type": "jrnn.config:find_config", "name": "x"}),
        "is not a class of this version",
    ),
    "function of a class": (
        lambda e: e["network"]["cell"].update(type="jrnn.cells.lstm:LSTM.init"),
        "is not a class of this version",
    ),
    "class of config.py": (
        lambda e: e["network"].update(cell={"type": "jrnn_config:Stranger"}),
        "pass --trust to execute its config.py",
    ),
    "class of a module": (lambda e: e.update(tbptt={"type": "os:stat"}), "execute that module"),
    "class that is a number": (lambda e: e["task"].update(type=3), 'its class as "type", got 3'),
    "class with escapes": (lambda e: e["task"].update(type="\x1b[31mred:C"), r"\x1b[31mred:C"),
    "long class": (lambda e: e["task"].update(type="c" * 5000), "needs the class ccc"),
    "long field": (lambda e: e["task"].update({"f" * 5000: 1}), "has no field 'fff"),
    "task of another kind": (lambda e: e.update(task=e["network"]), "task: "),
    "task as text": (lambda e: e.update(task="digits"), "task: str is not an instance of"),
    "number as tbptt": (lambda e: e.update(tbptt=3), "tbptt: int did not match any element"),
    "text as a size": (lambda e: e["network"]["cell"].update(hidden_size="4"), "str is not an"),
    "bool as a size": (lambda e: e["network"]["cell"].update(hidden_size=True), "got True"),
    "float as steps": (lambda e: e.update(steps=2.5), "float is not an instance of int"),
    "None as the seed": (lambda e: e.update(seed=None), "seed: None is not an instance of int"),
    "missing fields": (lambda e: e["network"].clear(), 'its class as "type", got None'),
    "no experiment": (lambda e: e.clear(), 'its class as "type", got None'),
    "network alone": (lambda e: e.update(e.pop("network")), "no field"),
}


@pytest.mark.parametrize("name", EDITS)
def test_hostile_config_is_refused(name, run, capsys):
    change, message = EDITS[name]
    edit_config(run / "config.json", change)
    (run / "config.py").write_text(CODE)
    for command in COMMANDS[:: 1 if name == "call in a field" else 2]:
        assert message in run_and_fail([*command, "run"], capsys)


CONTENTS = {
    "nested 3000 deep": b"[" * 3000 + b"]" * 3000,
    "70,000 objects that are not closed": b'{"experiment":' * 70_000,
    "infinite float": b'{"experiment": {"steps": 1e400}}',
    "Infinity": b'{"experiment": {"steps": Infinity}}',
    "NaN": b'{"experiment": {"steps": NaN}}',
    "int of 100 digits": b'{"experiment": {"steps": 1' + b"0" * 100 + b"}}",
    "int of 10000 digits": b'{"experiment": {"steps": 1' + b"0" * 10_000 + b"}}",
    "large": b" " * 2**21,
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"7",
    "not UTF-8": b'{"experiment": "\xff"}',
    "surrogate": rb'{"experiment": {"type": "\ud800"}}',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_hostile_json_is_refused(name, run, capsys):
    (run / "config.json").write_bytes(CONTENTS[name])
    assert "run/config.json: " in run_and_fail(["eval", "run"], capsys)
    (run / "sweep.json").write_bytes(CONTENTS[name])
    if name != "large":  # a sweep has many trials
        assert "run/sweep.json: " in run_and_fail(["sweep", "--resume", "run"], capsys)


def replace_by_link(path, target):
    """Replaces a file or folder, if it exists, by a symbolic link."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def make_fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


OUTSIDE = "outside"
ENTRIES = {
    "link to metrics": lambda run: replace_by_link(run / "metrics.jsonl", f"../{OUTSIDE}/file"),
    "link to a lock": lambda run: replace_by_link(run / ".lock", f"../{OUTSIDE}/file"),
    "link to a result": lambda run: replace_by_link(run / "result.part", f"../{OUTSIDE}/file"),
    "link to a figure": lambda run: replace_by_link(run / "figure.png", f"../{OUTSIDE}/file"),
    "link to checkpoints": lambda run: replace_by_link(run / "checkpoints", f"../{OUTSIDE}"),
    "link to a device": lambda run: replace_by_link(run / "data.json", "/dev/zero"),
    "FIFO as data.json": lambda run: make_fifo(run / "data.json"),
    "FIFO in a checkpoint": lambda run: make_fifo(run / "checkpoints/2/record/metadata"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_links_and_special_files_are_refused(name, run, capsys):
    outside = Path(OUTSIDE)
    outside.mkdir()
    (outside / "file").write_text("content")
    ENTRIES[name](run)
    for command in COMMANDS:
        assert "must contain regular files and folders only, got " in run_and_fail(
            [*command, "run"], capsys
        )
    assert [p.name for p in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "content"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "run/data.json is invalid: 'utf-8' codec"),
        (b"", "run/data.json is invalid: Expecting value"),
        (b"[]", "run/data.json is invalid: list indices"),
        (b"x" * (2**28 + 1), "run/data.json must have at most 268435456 bytes"),
    ],
    ids=["bytes", "empty", "list", "large"],
)
def test_hostile_data_file_is_refused(content, message, run, capsys):
    (run / "data.json").write_bytes(content)
    for command in (["eval"], ["predict", "run", "xs.npz"]):
        assert message in run_and_fail([command[0], "run", *command[2:]], capsys)


SPECS = {
    "an experiment": lambda saved: saved["data"][0].update(spec=1),
    "no spec": lambda saved: saved["data"][0].pop("spec"),
    "class of others": lambda saved: saved["data"][0]["spec"].update(type="subprocess:getoutput"),
    "text as size": lambda saved: saved["data"][0]["spec"].update(input_size="8"),
    "too few names": lambda saved: saved["data"][0]["spec"].update(class_names=["0"]),
    "too few baseline outputs": lambda s: s["data"][0]["spec"].update(baseline_outputs=[1.0]),
    "too many means": lambda saved: saved["data"][0]["spec"]["input_scaler"].update(
        mean=[0.0] * 9, std=[1.0] * 9
    ),
    "std of zero": lambda saved: saved["data"][0]["spec"]["input_scaler"].update(std=[0.0] * 8),
    "folder as number": lambda saved: saved.update(folder=1),
    "no data": lambda saved: saved.update(data=[]),
}


@pytest.mark.parametrize("name", SPECS)
def test_hostile_data_spec_is_refused(name, run, capsys):
    saved = json.loads((run / "data.json").read_text())
    SPECS[name](saved)
    (run / "data.json").write_text(json.dumps(saved))
    assert "run/data.json" in run_and_fail(["eval", "run"], capsys)


RECORDS = {
    "no trials": lambda record: record.update(trials=[]),
    "trials as text": lambda record: record.update(trials="abc"),
    "unknown field": lambda record: record["trials"][0].update(unknown=1),
    "negative bytes": lambda record: record["trials"][0]["metrics"].update(bytes=-1),
    "text as bytes": lambda record: record["trials"][0]["metrics"].update(bytes="all"),
    "text as metric": lambda record: record["trials"][0]["best"].update(best={"loss": "low"}),
    "text as seconds": lambda record: record.update(seconds="many"),
    "list as stopped": lambda record: record.update(stopped=[1]),
    "list": lambda record: [record],
    "no metric": lambda record: record["trials"][0]["best"].update(best={"loss": 1.0}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_hostile_record_is_refused(name, run, capsys):
    """The checksum matches the changed record."""
    for path in (run / "checkpoints").glob("*/record/metadata"):
        saved = json.loads(path.read_text())
        saved["record"] = RECORDS[name](saved["record"]) or saved["record"]
        content = {key: saved[key] for key in ("step", "record", "kinds")}
        path.write_text(json.dumps({**saved, "checksum": _checksum_of_json(content)}))
    command = ["train", "--resume", "run"] if "bytes" in name else ["eval", "run"]
    line = run_and_fail(command, capsys)
    assert "record of the checkpoint is invalid" in line or "has 0 bytes" in line or "-1" in line


def test_code_of_a_run_is_executed_only_with_trust(run, capsys):
    """A `config.py` that is not needed is not executed, with or without `--trust`."""
    source = (run / "config.py").read_text()
    (run / "config.py").write_text(CODE)
    main(["eval", "run"])
    main(["eval", "run", "--trust"])
    assert "accuracy" in capsys.readouterr().out and not Path(MARKER).exists()
    cell = "import dataclasses, jrnn\n@dataclasses.dataclass(frozen=True)\n"
    (run / "config.py").write_text(source + CODE + cell + "class Mine(jrnn.LSTM): pass\n")
    edit_config(run / "config.json", lambda e: e["network"]["cell"].update(type="jrnn_config:Mine"))
    assert "jrnn_config:Mine" in run_and_fail(["train", "--resume", "run"], capsys)
    with pytest.raises(SystemExit):
        main(["eval", "run", "--trust"])
    assert "of another network" in capsys.readouterr().err
    assert Path(MARKER).exists()


def test_trust_accepts_links(run, capsys):
    Path("data").mkdir()
    (run / "checkpoints").rename("data/checkpoints")
    replace_by_link(run / "checkpoints", "../data/checkpoints")
    main(["eval", "run", "--trust"])
    assert "accuracy" in capsys.readouterr().out


SWEEPS = {
    "no trials": ({"trials": []}, "there must be trials"),
    "width as text": ({"options": {"width": "all"}}, "width must be a positive int"),
    "spec as a list": ({"spec": []}, "spec must be a string"),
    "values as a list": (
        lambda trial: trial.update(values=[1]),
        "values of a trial must be a dict of strings",
    ),
    "call": (lambda trial: trial.update(experiment=CALL), "is not in jrnn; pass --trust"),
    "other axes": (lambda trial: trial.update(values={"x": "1"}), "with the same axes"),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_hostile_sweep_is_refused(name, run, capsys):
    change, message = SWEEPS[name]
    experiment = json.loads((run / "config.json").read_text())["experiment"]
    trials = [{"values": {"seed": str(k)}, "experiment": experiment} for k in range(2)]
    saved = {"spec": "configs/digits.py", "options": {"width": None}, "trials": trials}
    if callable(change):
        change(trials[1])
    else:
        saved.update(change)
    (run / "sweep.json").write_text(json.dumps(saved))
    assert message in run_and_fail(["sweep", "--resume", "run"], capsys)


TASK_FILES = {
    "device": ("/dev/zero", "path must be a regular file, got the device"),
    "FIFO": ("fifo", "path must be a regular file, got the device"),
    "folder": (".", "path must be a file, got the folder"),
    "sparse file of 4 GiB": ("sparse", "must have at most 2147483648 bytes"),
}


@pytest.mark.parametrize("name", TASK_FILES)
def test_task_file_must_be_regular_and_of_bounded_size(name, run, capsys):
    path, message = TASK_FILES[name]
    os.mkfifo("fifo")
    with open("sparse", "wb") as file:
        file.truncate(2**32)
    tasks = {
        "text:Text": {},
        "table:Table": {},
        "arrays:Arrays": {"kind": "classification"},
    }
    for cls, fields in tasks.items():
        task = {"type": f"jrnn.tasks.{cls}", "path": path, **fields}
        edit_config(run / "config.json", lambda e, task=task: e.update(task=task))
        line = run_and_fail(["eval", "run"], capsys)
        assert message in line or (path == "sparse" and "must be an .npz file" in line)
