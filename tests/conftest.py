"""Settings of JAX and hypothesis, fixtures for the tables of cells and engines, and test order."""

from collections.abc import Iterator

from tests.compilation import SETTINGS, set_environment

set_environment()  # before JAX is imported, which reads some of the variables

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from jrnn import Engine  # noqa: E402
from tests.helpers import mark_exhaustive  # noqa: E402
from tests.table import CELLS, ENGINES, KINDS, Row  # noqa: E402

# A plugin may have imported JAX already, before the environment variables were set. In this
# process, the settings also override variables that the user has set.
for name, value in SETTINGS.items():
    jax.config.update(name, value)

# With derandomize, hypothesis generates the same examples in every run. There is no deadline,
# because an example may include a compilation.
hypothesis.settings.register_profile("jrnn", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jrnn")


# With module scope, pytest groups the tests of a module by cell, so that they share compilations.
@pytest.fixture(scope="module", params=CELLS)
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Each row of the table of cells."""
    yield CELLS[request.param]


@pytest.fixture(scope="module", params=mark_exhaustive(CELLS, always=KINDS))
def kind_or_row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Each row of `KINDS`; each row of the table of cells in the exhaustive tests."""
    yield CELLS[request.param]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Row]:
    """Each row of `KINDS`, which cover the kinds of cells that engines treat differently."""
    yield CELLS[request.param]


@pytest.fixture(autouse=True, scope="module")
def clear_jax_caches() -> Iterator[None]:
    """Clears JAX's caches after a module if the process has many memory mappings.

    Each compiled program has several mappings. Linux allows 65530 mappings per process, and XLA
    crashes at this limit.
    """
    yield
    if count_memory_mappings() > 5_000:
        jax.clear_caches()


def count_memory_mappings() -> int:
    """Returns the number of memory mappings of this process; 0 on systems without /proc."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


@pytest.fixture(scope="module", params=ENGINES)
def engines(request: pytest.FixtureRequest) -> tuple[Engine, ...]:
    """The variants of an engine, for each engine that supports every cell."""
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def engine(engines: tuple[Engine, ...]) -> Engine:
    """Each engine that supports every cell, with default options."""
    return engines[0]


@pytest.fixture(params=[False, True], ids=["forward", "reverse"])
def reverse(request: pytest.FixtureRequest) -> bool:
    """Both scan directions."""
    return request.param


@pytest.fixture
def x64() -> Iterator[None]:
    """Enables float64 in one test; it is disabled by default, as in JAX."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def disable_compilation_cache() -> Iterator[None]:
    """Disables the compilation cache, for tests that count compilations."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # otherwise JAX ignores the change
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


# With `--dist loadgroup`, the tests of a file run on one worker and share compilations and
# fixtures. Files whose tests use several processes at a time form one group, so that they run one
# after another.
MULTIPROCESS_FILES = (
    "tests/distributed/test_process_group.py",
    "tests/train/test_processes.py",
    "tests/train/test_resume.py",
    "tests/sweep/test_sweep.py",
    "tests/sweep/test_ray.py",
)
# The files in this folder share the trained runs of their conftest.py.
SHARED_FIXTURES = "tests/report/"
# The slowest files run first, which reduces idle time of workers at the end.
FIRST_FILES = (*MULTIPROCESS_FILES, "tests/test_testing.py", "tests/engines/test_")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the markers of groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    path = lambda item: item.nodeid.partition("::")[0]
    items.sort(key=lambda item: not path(item).startswith(FIRST_FILES))
    for item in items:
        name = "multiprocess" if path(item) in MULTIPROCESS_FILES else path(item)
        name = SHARED_FIXTURES if name.startswith(SHARED_FIXTURES) else name
        item.add_marker(pytest.mark.xdist_group(name))
