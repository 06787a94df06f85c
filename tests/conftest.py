"""What all tests share: fixtures over the tables of cells and engines, and settings."""

from collections.abc import Iterator

from tests.compilation import SETTINGS, set_environment

set_environment()  # JAX may have been imported already, so that its settings follow below

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from jrnn import Engine  # noqa: E402
from tests.helpers import mark_exhaustive  # noqa: E402
from tests.table import CELLS, ENGINES, KINDS, Row  # noqa: E402

for name, value in SETTINGS.items():
    jax.config.update(name, value)

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


@pytest.fixture(scope="module", params=mark_exhaustive(CELLS, always=KINDS))
def kind_or_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The rows of `kind`, and in the exhaustive suite each row."""
    yield CELLS[request.param]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Row]:
    """One row for each kind of cell that an engine treats in its own way."""
    yield CELLS[request.param]


@pytest.fixture(autouse=True, scope="module")
def forgetful() -> Iterator[None]:
    """Frees what has been compiled when it takes many maps of memory.

    A program that is compiled takes several of them, of which Linux gives a process 65530; without
    one more XLA crashes.
    """
    yield
    if memory_maps() > 5_000:
        jax.clear_caches()


def memory_maps() -> int:
    """How many maps of memory this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


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
    """Both scan directions."""
    return request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """Doubles for the length of one test: users run without them, and so do the other tests."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def uncached() -> Iterator[None]:
    """No compilation cache, for tests that count what is compiled."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


# With --dist loadgroup each file is one group: its tests share what they compile and the fixtures
# of their module. Files that start processes are one group, so that no two run at a time.
PROCESSES = (
    "tests/processes/test_team.py",
    "tests/train/test_processes.py",
    "tests/train/test_resume.py",
    "tests/train/test_sweep.py",
)
# The longest first: at the end no worker waits for another.
FIRST = (*PROCESSES, "tests/test_testing.py", "tests/engines/test_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    path = lambda item: item.nodeid.partition("::")[0]
    items.sort(key=lambda item: not path(item).startswith(FIRST))
    for item in items:
        name = "processes" if path(item) in PROCESSES else path(item)
        item.add_marker(pytest.mark.xdist_group(name))
