"""Kernels for CPUs in C++ (jrnn/kernels); not there where jrnn was installed without a compiler."""

from typing import Any

def registrations() -> dict[str, Any]:
    """The handlers by name, as capsules for `jax.ffi.register_ffi_target`."""

def isa() -> str:
    """The instruction set in use: `base`, `v3` or `v4`; `JRNN_ISA` may ask for a smaller one."""

def available_isas() -> tuple[str, ...]:
    """The instruction sets that were compiled and that this machine runs, the smallest first."""
