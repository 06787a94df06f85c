"""The layers of PyTorch, on the kind of device that JAX uses."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from jrnn.bench import machine
from jrnn.bench.contenders import Case, Contender, Unavailable, of_cell

LAYERS: dict[str, Any] = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}


def build(case: Case) -> list[Contender]:
    """The layer of the case."""
    torch.set_num_threads(machine.cores())
    torch.manual_seed(0)
    kind = of_cell("torch", case, LAYERS)
    dtype = getattr(torch, case.dtype)
    layer = kind(case.shape.input, case.shape.hidden).to(device(), dtype)
    # NumPy's bfloat16 means nothing to PyTorch; a copy, as the inputs are shared.
    xs = torch.tensor(case.inputs().astype(np.float32), dtype=dtype, device=device())
    call = _backward(layer, xs.requires_grad_()) if case.backward else _forward(layer, xs)
    return [Contender(f"torch {kind.__name__}", "torch", _awaited(call))]


def device() -> str:
    """`cpu` or `cuda`.

    Raises:
      Unavailable: JAX runs on something that PyTorch has not.
    """
    if jax.default_backend() == "cpu":
        return "cpu"
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise Unavailable(f"has no {jax.default_backend()}, on which JAX runs here")


def _forward(layer: Any, xs: Any) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return layer(xs)[0]

    return call


def _backward(layer: Any, xs: Any) -> Callable[[], Any]:
    leaves = [*layer.parameters(), xs]

    def call() -> Any:
        for leaf in leaves:
            leaf.grad = None
        loss = layer(xs)[0].square().mean()
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    return call


def _awaited(call: Callable[[], Any]) -> Callable[[], Any]:
    if device() == "cpu":
        return call

    def awaited() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return awaited
