"""The extension module `jrnn._kernels`: instruction sets, handlers, and import on first use."""

import importlib.util
import os
import subprocess
import sys

import pytest

ISAS = ["base", "v3", "v4"]  # from the oldest to the newest

needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("jrnn._kernels") is None,
    reason="the C++ kernels are not installed",
)


def run_python(code: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a new process, because the instruction set is selected once per process."""
    env = {name: value for name, value in os.environ.items() if name != "JRNN_ISA"}
    env |= {} if isa is None else {"JRNN_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def selected_isa(requested: str | None) -> str:
    """Returns the selected instruction set if JRNN_ISA is `requested`; None leaves it unset."""
    process = run_python("from jrnn import _kernels; print(_kernels.isa())", requested)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@needs_kernels
def test_newest_available_instruction_set_is_the_default() -> None:
    from jrnn import _kernels

    available = list(_kernels.available_isas())
    assert available == [name for name in ISAS if name in available]
    assert available[0] == "base"
    assert selected_isa(None) == selected_isa("") == available[-1]


@needs_kernels
@pytest.mark.parametrize("requested", ISAS)
def test_jrnn_isa_limits_the_instruction_set(requested: str) -> None:
    from jrnn import _kernels

    allowed = ISAS[: ISAS.index(requested) + 1]
    expected = [name for name in _kernels.available_isas() if name in allowed][-1]
    assert selected_isa(requested) == expected


@needs_kernels
def test_unknown_jrnn_isa_raises() -> None:
    process = run_python("from jrnn import _kernels", "avx2")
    assert process.returncode != 0
    assert "JRNN_ISA must be base, v3 or v4, got 'avx2'" in process.stderr


@needs_kernels
def test_handlers_can_be_registered_with_jax() -> None:
    code = """
import jax
from jrnn import _kernels
for name, handler in _kernels.registrations().items():
    jax.ffi.register_ffi_target(name, handler, platform="cpu")
    print(name)
"""
    process = run_python(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["jrnn_forward", "jrnn_backward"]


def test_import_of_jrnn_does_not_load_the_kernels() -> None:
    process = run_python("import sys, jrnn; sys.exit('jrnn._kernels' in sys.modules)")
    assert process.returncode == 0, process.stderr
