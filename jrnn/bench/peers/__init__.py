"""The libraries that take part: each file here has `build(case)`, which gives its contenders."""

import importlib

from jrnn.bench.contenders import Case, Contender, Unavailable

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
"""The file of each library, by the name that `--peers` takes."""

BFLOAT16 = ("nnx", "torch")
"""The libraries that are timed in other dtypes than float32."""


def build(peer: str, case: Case) -> list[Contender]:
    """The contenders of a library for a case.

    Raises:
      Unavailable: it is not installed, does not work here, or has no such layer.
    """
    if case.dtype != "float32" and peer not in BFLOAT16:
        raise Unavailable(f"is timed in float32 only, not in {case.dtype}")
    try:
        adapter = importlib.import_module(f".{PEERS[peer]}", __package__)
        return adapter.build(case)
    except Unavailable:
        raise
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {error}") from error
    except Exception as error:  # whatever a library of another's does must not end the run
        raise Unavailable(f"failed: {type(error).__name__}: {error}") from error
