"""What all tests share: fixtures over the tables of cells and engines, and hypothesis settings."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

from jrnn import Engine
from tests.table import CELLS, ENGINES, KINDS, Row

# The same examples on every run: a suite of many cells is no place for a test that fails by chance.
# A compile can take longer than any deadline of hypothesis.
hypothesis.settings.register_profile("jrnn", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jrnn")


# Module scope makes pytest run all tests of a module on one cell one after another, so that they
# share what is compiled for it.
@pytest.fixture(scope="module", params=CELLS)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Each row of the table of cells."""
    yield CELLS[request.param]
    jax.clear_caches()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Row]:
    """One row for each kind of cell that an engine treats in its own way."""
    yield CELLS[request.param]
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def forgetful() -> Iterator[None]:
    """Frees what a module has compiled.

    A program that is compiled takes several maps of memory, of which Linux gives a process 65530;
    without one more XLA crashes.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module", params=ENGINES)
def engines(request: pytest.FixtureRequest) -> tuple[Engine, ...]:
    """Each engine that runs every cell, with its variants."""
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def engine(engines: tuple[Engine, ...]) -> Engine:
    """Each engine that runs every cell, as it is by default."""
    return engines[0]


@pytest.fixture(params=[False, True], ids=["forward", "reverse"])
def reverse(request: pytest.FixtureRequest) -> bool:
    """Both directions of travel."""
    return request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """Doubles for the length of one test: users run without them, and so do the other tests."""
    with jax.enable_x64(True):
        yield
