"""The machine: its hardware, the versions of libraries, and the speed of matrix products."""

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = "jrnn jax jaxlib flax dm-haiku equinox keras torch onnxruntime onnx numpy".split()
MATMUL_SIZES = (2048, 1024, 2048)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of `PACKAGES`; None for a package not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Describes the system, the processor, the kernels of jrnn, and the default device of JAX."""
    fields = _cpuinfo()
    flags = sorted(flag for flag in fields.get("flags", "").split() if _is_vector(flag))
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": fields.get("model name", platform.processor()),
        "cores": cores(),
        "vector_flags": flags,
        "kernels": _kernels_isa(),
        "device": jax.devices()[0].device_kind,
    }


def _kernels_isa() -> str | None:
    """Returns the instruction set of jrnn's kernels; None if they were not built."""
    try:
        from jrnn import _kernels
    except ImportError:
        return None
    return _kernels.isa()


def _is_vector(flag: str) -> bool:
    return flag.startswith(("avx", "amx", "fma", "f16c"))


def _cpuinfo() -> dict[str, str]:
    """Returns the first processor of /proc/cpuinfo; empty if that file does not exist."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first, _, _ = path.read_text("utf-8").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def other_process_seconds() -> float | None:
    """Returns the CPU seconds of all other processes since boot, or None without /proc/stat."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def matmul_gflops(sizes: tuple[int, int, int] = MATMUL_SIZES, repeats: int = 8) -> dict[str, float]:
    """Measures the GFLOP/s of a float32 matrix product by XLA, and by PyTorch on a CPU.

    The result has no entry for PyTorch if it is not installed, or JAX does not run on a CPU.

    Args:
      sizes: m, k and n of a product of `[m, k]` and `[k, n]`.
      repeats: number of timed calls.
    """
    m, k, n = sizes
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(np.float32) for size in ((m, k), (k, n)))
    calls = {"xla": _make_xla_matmul(a, b), "torch": _make_torch_matmul(a, b)}
    gflops = {}
    for name, call in calls.items():
        if call is not None:
            gflops[name] = 2e-9 * m * k * n / _median_seconds(call, repeats)
    return gflops


def _make_xla_matmul(a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    product, left, right = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)
    return lambda: jax.block_until_ready(product(left, right))


def _make_torch_matmul(a: np.ndarray, b: np.ndarray) -> Callable[[], Any] | None:
    """Returns a function that computes the product; None without PyTorch, or if not on a CPU."""
    if _version("torch") is None or jax.default_backend() != "cpu":
        return None
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(cores())
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: torch.mm(left, right)


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
