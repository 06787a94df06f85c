"""Recurrent layers of PyTorch, on the same type of device as JAX."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from jrnn.bench import machine
from jrnn.bench.implementations import Case, Implementation, Unavailable, select_layer

LAYERS: dict[str, Any] = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation, with the layer of the case."""
    torch.set_num_threads(machine.cores())
    torch.manual_seed(0)
    layer_class = select_layer("torch", case, LAYERS)
    dtype = getattr(torch, case.dtype)
    layer = layer_class(case.shape.input, case.shape.hidden).to(device(), dtype)
    # PyTorch does not support NumPy's bfloat16 arrays. `torch.tensor` copies the shared inputs.
    xs = torch.tensor(case.inputs().astype(np.float32), dtype=dtype, device=device())
    call = (
        _make_backward(layer, xs.requires_grad_())
        if case.has_backward
        else _make_forward(layer, xs)
    )
    return [Implementation(f"torch {layer_class.__name__}", "torch", _synchronize(call))]


def device() -> str:
    """Returns `cpu` or `cuda`, the device type that JAX uses.

    Raises:
      Unavailable: PyTorch does not support it.
    """
    if jax.default_backend() == "cpu":
        return "cpu"
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise Unavailable(f"does not support the backend of JAX, {jax.default_backend()}")


def _make_forward(layer: Any, xs: Any) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return layer(xs)[0]

    return call


def _make_backward(layer: Any, xs: Any) -> Callable[[], Any]:
    leaves = [*layer.parameters(), xs]

    def call() -> Any:
        for leaf in leaves:
            leaf.grad = None
        loss = layer(xs)[0].square().mean()
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    return call


def _synchronize(call: Callable[[], Any]) -> Callable[[], Any]:
    if device() == "cpu":
        return call

    def call_and_synchronize() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return call_and_synchronize
