"""Memory checks, which raise an error before arrays that cannot fit are allocated.

Without them the operating system may kill the process when an array is too large, and no exception
is raised.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

from jrnn.dtypes import is_prng_key

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def num_bytes(tree: Any) -> int:
    """Returns the size in bytes of arrays or `jax.ShapeDtypeStruct`s. PRNG keys are not counted."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not is_prng_key(leaf)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def check_host(owner: str, name: str, needed: int, advice: str) -> None:
    """Raises ValueError if NumPy arrays do not fit in the memory of this machine.

    Args:
      owner: the class or function that the user called.
      name: what needs the memory.
      needed: its size in bytes; a lower bound suffices.
      advice: what the user can do.
    """
    _check(owner, name, needed, host_bytes(), "this machine", advice)


def check_devices(owner: str, name: str, needed: int, advice: str, devices: int = 1) -> None:
    """Raises ValueError if JAX arrays do not fit in the memory of the devices.

    Args:
      owner: the class or function that the user called.
      name: what needs the memory.
      needed: its total size in bytes on all devices; a lower bound suffices.
      advice: what the user can do.
      devices: number of devices over which the arrays are sharded.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None:  # the memory of a CPU is that of the machine, which its devices share
        _check(owner, name, needed, host_bytes(), "this machine", advice)
    else:
        _check(owner, name, needed, limit * devices, f"{devices} x {device.device_kind}", advice)


@lru_cache(maxsize=1)
def host_bytes() -> int:
    """Returns the memory of this machine, or the limit of its control group if lower, in bytes."""
    limits = [2**63]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            continue  # there is no such group, or its limit is "max"
    return min(limits)


def _check(owner: str, name: str, needed: int, limit: int, place: str, advice: str) -> None:
    if needed > limit:
        raise ValueError(
            f"{owner}: {name} must fit in the {format_bytes(limit)} of memory of {place}, got "
            f"at least {format_bytes(needed)}; {advice}"
        )


def format_bytes(count: int) -> str:
    """Formats a number of bytes with three significant digits.

    >>> format_bytes(64_000_000_000_000)
    '64 TB'
    """
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"
