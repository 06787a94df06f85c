"""The scripts of `jrnn completion`, as a shell runs them."""

import contextlib
import shutil
import subprocess

import pytest

from jrnn.cli import main
from jrnn.cli.completion import SHELLS
from tests.cli.test_errors import run_and_fail

CALL = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
_shtab_jrnn
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Returns the paths of the scripts by the name of the shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with (folder / shell).open("w") as file, contextlib.redirect_stdout(file):
            main(["completion", shell])
    return {shell: folder / shell for shell in SHELLS}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], {"train"}),
        (["c"], {"compare", "completion"}),
        (["train", "configs/d"], {"configs/digits.py"}),
        (["train", "my"], {"my_config.py"}),
        (["train", "configs/digits.py", "--optimizer.l"], {"--optimizer.learning-rate"}),
        (["train", "configs/table.py", "--task.mis"], {"--task.missing"}),
        (["train", "--resume", ""], {"runs"}),
        (["predict", "runs/mine", "ne"], {"new.npz"}),
        (["eval", "runs/mine", "--split", ""], {"train", "validation", "test"}),
        (["eval", "runs/mine", "--tr"], {"--trust"}),
        (["compare", "runs/a", "r"], {"runs"}),
        (["ls", "c"], {"cells", "configs"}),
        (["completion", ""], {"bash", "zsh", "tcsh"}),
    ],
)
def test_bash_completes(words, expected, scripts, tmp_path):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    (tmp_path / "runs").mkdir()
    for name in ("new.npz", "my_config.py", "table.csv"):
        (tmp_path / name).touch()
    command = [bash, "-c", CALL, "bash", str(scripts["bash"]), "jrnn", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(result.stdout.split()) == expected, result.stderr


def test_scripts_of_other_shells_have_commands_and_flags(scripts):
    for shell in ("zsh", "tcsh"):
        text = scripts[shell].read_text()
        assert all(word in text for word in ("predict", "batch-size", "init-from", "validation"))


def test_unknown_shell_is_refused(capsys):
    assert "must be one of bash, zsh, tcsh, got fish" in run_and_fail(
        ["completion", "fish"], capsys
    ).replace("'", "")
    assert "got none; run for example: jrnn completion bash" in run_and_fail(["completion"], capsys)
