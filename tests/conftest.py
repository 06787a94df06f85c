"""Shared fixtures over the tables of cells and engines, and settings of JAX and hypothesis."""

from collections.abc import Iterator

from tests.compilation import SETTINGS, set_environment

set_environment()  # JAX may have been imported already, so its settings are also updated below

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from jrnn import Engine  # noqa: E402
from tests.helpers import mark_exhaustive  # noqa: E402
from tests.table import CELLS, ENGINES, KINDS, Row  # noqa: E402

for name, value in SETTINGS.items():
    jax.config.update(name, value)

# The examples are the same on every run, so that no test fails at random. There is no deadline,
# because compilation can take long.
hypothesis.settings.register_profile("jrnn", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jrnn")


# Module scope makes pytest group the tests of a module by cell, so that they share compilations.
@pytest.fixture(scope="module", params=CELLS)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Each row of the table of cells."""
    yield CELLS[request.param]


@pytest.fixture(scope="module", params=mark_exhaustive(CELLS, always=KINDS))
def kind_or_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The rows of `kind`; in the exhaustive suite, each row."""
    yield CELLS[request.param]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Row]:
    """One row for each kind of cell that engines treat differently."""
    yield CELLS[request.param]


@pytest.fixture(autouse=True, scope="module")
def clear_jax_caches() -> Iterator[None]:
    """Clears JAX's caches when the process has many memory mappings.

    Each compiled program has several mappings. Linux limits them to 65530 per process, and XLA
    crashes at the limit.
    """
    yield
    if memory_maps() > 5_000:
        jax.clear_caches()


def memory_maps() -> int:
    """The number of memory mappings of this process; 0 on systems without /proc."""
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
    """Each engine that runs every cell, with default options."""
    return engines[0]


@pytest.fixture(params=[False, True], ids=["forward", "reverse"])
def reverse(request: pytest.FixtureRequest) -> bool:
    """Both scan directions."""
    return request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """Enables float64 for one test; it is disabled by default, as for users."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def uncached() -> Iterator[None]:
    """Disables the compilation cache, for tests that count compilations."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


# With --dist loadgroup each file is a group, whose tests share compilations and module fixtures.
# Files that start processes form one group, so that only one runs at a time.
PROCESSES = (
    "tests/distributed/test_process_group.py",
    "tests/train/test_processes.py",
    "tests/train/test_resume.py",
    "tests/sweep/test_sweep.py",
)
# The longest files run first, so that no worker waits for another at the end.
FIRST = (*PROCESSES, "tests/test_testing.py", "tests/engines/test_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    path = lambda item: item.nodeid.partition("::")[0]
    items.sort(key=lambda item: not path(item).startswith(FIRST))
    for item in items:
        name = "processes" if path(item) in PROCESSES else path(item)
        item.add_marker(pytest.mark.xdist_group(name))
