"""Settings of JAX and XLA for the tests.

Compilation takes nearly all of the time of the test suite, so most of XLA's optimizations are
disabled. A test enables them by `jax.jit(..., compiler_options=OPTIMIZED)`, and then runs the same
code as users.
"""

import os
from importlib.metadata import version
from pathlib import Path

# The older of the two emitters of elementwise code in jaxlib 0.10 compiles twice as fast. Only this
# version gets the flag, because XLA aborts on unknown flags.
HAS_OLD_EMITTERS = version("jaxlib").startswith("0.10.")
XLA_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"] + (
    ["--xla_cpu_use_fusion_emitters=false"] if HAS_OLD_EMITTERS else []
)
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False} | (
    {"xla_cpu_use_fusion_emitters": True} if HAS_OLD_EMITTERS else {}
)

UNOPTIMIZED = {"jax_disable_most_optimizations": True}
CACHE = {
    "jax_compilation_cache_dir": str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jrnn-tests"
    ),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
SETTINGS = UNOPTIMIZED | (CACHE if os.environ.get("JRNN_TEST_CACHE", "1") != "0" else {})


def set_environment() -> None:
    """Sets XLA_FLAGS, and the variables of `SETTINGS` that are not set already.

    They also apply to processes that tests start.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*XLA_FLAGS, *flags]))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name.upper(), str(value))


def environment_with_devices(count: int) -> dict[str, str]:
    """Returns the environment variables of a process in which JAX has `count` CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
