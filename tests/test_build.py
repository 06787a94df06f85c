"""The extension module `jrnn._kernels`, where it was built, and an import that leaves it alone."""

import importlib.util
import os
import subprocess
import sys

import pytest

ORDER = ["base", "v3", "v4"]

needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("jrnn._kernels") is None,
    reason="jrnn was installed without its kernels in C++: no compiler, or it failed",
)


def run(code: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own: the instruction set is chosen once in a process."""
    env = {name: value for name, value in os.environ.items() if name != "JRNN_ISA"}
    env |= {} if isa is None else {"JRNN_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def isa_of(asked: str | None) -> str:
    found = run("from jrnn import _kernels; print(_kernels.isa())", asked)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@needs_kernels
def test_the_best_instruction_set_is_chosen() -> None:
    from jrnn import _kernels

    available = list(_kernels.available_isas())
    assert available == [name for name in ORDER if name in available]
    assert available[0] == "base"
    assert isa_of(None) == isa_of("") == available[-1]


@needs_kernels
@pytest.mark.parametrize("asked", ORDER)
def test_jrnn_isa_asks_for_a_smaller_one(asked: str) -> None:
    from jrnn import _kernels

    allowed = ORDER[: ORDER.index(asked) + 1]
    assert isa_of(asked) == [name for name in _kernels.available_isas() if name in allowed][-1]


@needs_kernels
def test_an_unknown_jrnn_isa_is_refused() -> None:
    found = run("from jrnn import _kernels", "avx2")
    assert found.returncode != 0
    assert "JRNN_ISA: expected base, v3 or v4, got 'avx2'" in found.stderr


@needs_kernels
def test_handlers_are_what_jax_registers() -> None:
    code = """
import jax
from jrnn import _kernels
for name, handler in _kernels.registrations().items():
    jax.ffi.register_ffi_target(name, handler, platform="cpu")
    print(name)
"""
    found = run(code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["jrnn_forward", "jrnn_backward"]


def test_import_of_jrnn_leaves_the_kernels_alone() -> None:
    found = run("import sys, jrnn; sys.exit('jrnn._kernels' in sys.modules)")
    assert found.returncode == 0, found.stderr
