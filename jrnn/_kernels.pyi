"""C++ kernels for CPUs (jrnn/kernels); missing if jrnn was installed without a compiler."""

from typing import Any

def registrations() -> dict[str, Any]:
    """Returns the XLA FFI handlers by name, as capsules for `jax.ffi.register_ffi_target`."""

def isa() -> str:
    """Returns the selected instruction set: `base`, `v3` or `v4`; `JRNN_ISA` limits it."""

def available_isas() -> tuple[str, ...]:
    """Returns the compiled instruction sets that this CPU supports, from oldest to newest."""
