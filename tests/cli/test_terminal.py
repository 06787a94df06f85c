"""Control characters on a terminal, long names in messages, a closed pipe, non-finite options."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jrnn.cli import main, table_file
from jrnn.cli.table_file import Content
from jrnn.messages import MAX_MESSAGE, escape_controls, format_message, shorten
from jrnn.terminal import Console, write_text

ESCAPE = "x\x1b[31m\x9b7m\u202e\x07y"
ESCAPED = r"x\x1b[31m\x9b7m\u202e\x07y"


@pytest.fixture(autouse=True)
def run_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ESCAPE, ESCAPED),
        ("größe 漢字 \N{SNAKE}\n\ta\xa0b", "größe 漢字 \N{SNAKE}\n\ta\xa0b"),
        (os.fsdecode(b"a\xffb"), r"a\udcffb"),
        ("\r\x00\x7f\u2028", r"\r\x00\x7f\u2028"),
    ],
)
def test_control_characters_are_escaped(text, expected):
    assert escape_controls(text) == expected


def test_messages_are_one_line_of_bounded_length():
    assert format_message("a\n  b\r\n\tc") == "a b c"
    assert len(format_message(f"got {'n' * 5000}; do this")) < 250
    assert format_message(f"got {'n' * 5000}; do this").endswith("; do this")
    message = format_message("one of " + "name, " * 10_000 + "; do this")
    assert len(message) == MAX_MESSAGE and message.endswith("; do this")
    assert shorten("abc", 3) == "abc" and len(shorten("a" * 1000, 100)) == 100
    assert len(format_message("\x1b" * 10_000)) <= MAX_MESSAGE


def run_and_fail(args, capsys):
    """Runs a command that must exit with code 2, and returns its standard error."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


CSV = f"{ESCAPE},b\n" + "1,2\n" * 200
COMMANDS = {
    "run": ["eval", ESCAPE],
    "command": [ESCAPE],
    "unknown flag": ["eval", "run", "--" + ESCAPE],
    "flag of a config": ["train", "configs/digits.py", "--seed", ESCAPE],
    "flag of a sweep": ["sweep", "configs/digits.py", "--random", ESCAPE],
    "config": ["train", f"{ESCAPE}.py"],
    "argument": ["train", f"configs/digits.py:cell={ESCAPE}"],
    "column": ["train", "configs/table.py:path=data.csv", "--task.columns", "c"],
    "list": ["ls", ESCAPE],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_errors_escape_what_they_quote(name, capsys):
    Path("data.csv").write_text(CSV)
    error = run_and_fail(COMMANDS[name], capsys)
    assert not set(ESCAPE) & set("\x1b\x9b\u202e\x07") & set(error)
    assert "x1b" in error


@pytest.mark.parametrize("name", COMMANDS)
def test_errors_shorten_long_names(name, capsys):
    long = "n" * 50_000
    Path("data.csv").write_text(CSV.replace(ESCAPE, long))
    error = run_and_fail([arg.replace(ESCAPE, long) for arg in COMMANDS[name]], capsys)
    if "flag" in name:  # tyro wraps its messages
        assert error.count("n" * 20) < 1000 and len(error) <= 5 * MAX_MESSAGE
    else:
        assert error.count("\n") == 1 and len(error) < 700


def test_validate_escapes_names(capsys):
    with pytest.raises(SystemExit):
        main(["validate", f"{ESCAPE}.py"])
    output = capsys.readouterr().out
    assert "\x1b[31m" not in output and r"x\x1b[31m" in output


def test_tables_escape_names(capsys):
    from rich.table import Table

    table = Table(ESCAPE, title=ESCAPE)
    table.add_row(ESCAPE)
    console = Console(width=100)
    console.print(table)
    assert capsys.readouterr().out.count(ESCAPED) == 3


def test_control_characters_are_escaped_only_on_a_terminal(capfd):
    write_text(ESCAPE)
    assert capfd.readouterr().out == ESCAPE + "\n"
    controller, terminal = pty.openpty()
    code = f"from jrnn.terminal import write_text; write_text({ESCAPE!r})"
    subprocess.run([sys.executable, "-c", code], stdout=terminal, check=True, timeout=60)
    os.close(terminal)
    assert os.read(controller, 1000).decode().strip() == ESCAPED
    os.close(controller)


def test_sample_does_not_escape_text_that_is_not_printed_on_a_terminal(capsys):
    Path("text.txt").write_text("the \x1b[31mcat\x1b[0m sat. " * 100)
    flags = ["--steps", "2", "--network.cell.hidden-size", "4", "--task.window", "16"]
    main(["train", "configs/text.py:path=text.txt", "--run-dir", "run", *flags])
    capsys.readouterr()
    prompt = "cat\x1b[0m"
    main(["sample", "run", "--prompt", prompt, "--length", "5"])
    assert capsys.readouterr().out.startswith(prompt)


def run_jrnn(args, stdout):
    """Runs a command in a process of its own, which writes to `stdout`."""
    command = [sys.executable, "-m", "jrnn", *args]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)


@pytest.mark.parametrize("args", [["ls", "cells"], ["eval", "--help"], ["--help"]])
def test_closed_pipe_ends_the_command_without_a_message(args):
    reader, writer = os.pipe()
    os.close(reader)
    process = run_jrnn(args, writer)
    os.close(writer)
    assert process.returncode == 128 + signal.SIGPIPE and process.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["--version"], ["ls", "tasks"]])
def test_output_on_a_full_disk_exits_with_code_1(args):
    with open("/dev/full", "w") as full:
        process = run_jrnn(args, full)
    error = "jrnn: standard output cannot be written: No space left on device; free disk space\n"
    assert process.returncode == 1 and process.stderr == error


def test_non_finite_options_are_refused(capsys):
    for flags in (
        ["--optimizer.learning-rate", "inf"],
        ["--optimizer.learning-rate", "nan"],
        ["--optimizer.clip-norm", "inf"],
        ["--network.cell.forget-bias", "nan"],
        ["--save-every", "inf"],
    ):
        error = run_and_fail(["train", "configs/digits.py", *flags], capsys)
        name = flags[0].split(".")[-1].replace("-", "_").removeprefix("__")
        assert name in error and "number" in error
    assert not Path("runs").exists()


def test_names_in_predictions_are_escaped_on_a_terminal_only(monkeypatch, capsys):
    content = lambda: Content(["label"], [["a\x1b[31mb"]], {})
    table_file.write(content(), None)
    assert capsys.readouterr().out == "label\na\x1b[31mb\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table_file.write(content(), None)
    assert capsys.readouterr().out == "label\na\\x1b[31mb\n"
