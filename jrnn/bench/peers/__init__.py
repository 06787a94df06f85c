"""Peer libraries. Each module has a function `build(case)` that returns implementations."""

import importlib

from jrnn.bench.implementations import Case, Implementation, Unavailable

PEERS = {
    "nnx": "flax_nnx",
    "linen": "flax_linen",
    "haiku": "haiku_unroll",
    "equinox": "equinox_scan",
    "keras": "keras_jax",
    "torch": "pytorch",
    "onnxruntime": "onnx_runtime",
    "cudnn": "jax_cudnn",
}
"""Modules of this package, by the name of the library in `--peers`."""

BFLOAT16 = ("nnx", "torch")
"""Libraries that are also timed in bfloat16."""


def build(peer: str, case: Case) -> list[Implementation]:
    """Returns the implementations of a library for a case.

    Raises:
      Unavailable: the library is not installed, fails, or has no such layer.
    """
    if case.dtype != "float32" and peer not in BFLOAT16:
        raise Unavailable(f"dtype must be float32, got {case.dtype}")
    try:
        adapter = importlib.import_module(f".{PEERS[peer]}", __package__)
        return adapter.build(case)
    except Unavailable:
        raise
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {error}") from error
    except Exception as error:  # an error of another library must not stop the benchmark
        raise Unavailable(f"failed: {type(error).__name__}: {error}") from error
