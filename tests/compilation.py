"""Settings of JAX and XLA for tests, some of which JAX reads when it is imported.

The suite spends nearly all of its time on compilation, so most tests run code that XLA has not
optimized. With `compiler_options=OPTIMIZED` a test runs the same code as users.
"""

import os
from importlib.metadata import version
from pathlib import Path

# JAX 0.10 has two emitters of elementwise code, and the older one compiles in half of the time.
# Later releases do not have this flag, and XLA aborts on unknown flags.
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
    """Sets the environment variables of this process and of those that tests start."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*XLA_FLAGS, *flags]))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name.upper(), str(value))


def environment_with_devices(count: int) -> dict[str, str]:
    """The environment of a process in which JAX sees `count` CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
