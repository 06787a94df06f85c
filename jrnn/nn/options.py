"""Validation of the arguments that the modules of `jrnn.nn` share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jrnn import checks
from jrnn.layer import Inputs, Layer, convert_nested_list
from jrnn.params import find_input_size

MODULE_HINTS = {
    "activation": "use the options of the cell, such as StackedRNN(jrnn.Elman(64, "
    "activation='relu'), ...)",
    "batch_first": "inputs are (batch, time, input) by default; for (time, batch, input) use "
    "time_major=True",
    "bias": "use the option bias of the cell, such as StackedRNN(jrnn.Elman(64, bias=False), ...)",
    "bidirectional": "use jrnn.nn.StackedRNN(..., bidirectional=True), or the cell "
    "jrnn.bidirectional(cell)",
    "device": "use jax.default_device or jax.device_put",
    "dropout": "use jrnn.nn.StackedRNN(..., dropout=0.1), or jrnn.transforms.dropout on the cell",
    "go_backwards": "use jrnn.nn.RNN(cell, input_size, reverse=True, ...)",
    "hidden_size": "use it for the cell, as in StackedRNN(jrnn.LSTM(64), ...)",
    "input_size": "remove it, since the size of the outputs of body is known",
    "nonlinearity": "use StackedRNN(jrnn.Elman(64, activation='relu'), ...)",
    "num_layers": "use jrnn.nn.StackedRNN(..., num_layers=2), or the cell jrnn.stack([...])",
    "recurrent_dropout": "use jrnn.transforms.weight_drop or jrnn.transforms.dropout on the cell",
    "return_carry": "the carry is always returned, as the first result",
    "return_sequences": "the outputs of all steps are returned; use jrnn.nn.Classifier for one "
    "output for each sequence",
    "return_state": "the carry is always returned, as the first result",
    "units": "use the option hidden_size of the cell",
}
"""Options of PyTorch, Keras and flax that the modules lack, and what to use instead of each."""


def check_rngs(owner: str, rngs: Any) -> None:
    """Raises a TypeError unless the value is an `nnx.Rngs`."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(
            f"{owner}: rngs must be random streams such as nnx.Rngs(0), got {checks.describe(rngs)}"
        )


def check_dtypes(owner: str, dtype: DTypeLike | None, param_dtype: DTypeLike) -> None:
    """Raises a TypeError unless the dtypes of a module are floating and enabled in JAX."""
    if dtype is not None:
        checks.float_dtype(owner, dtype)
    checks.float_dtype(owner, param_dtype, "param_dtype")


def check_body(owner: str, body: Any) -> None:
    """Raises a TypeError unless the value is a module with the attribute `causal`, as in `RNN`."""
    if not isinstance(body, nnx.Module) or getattr(body, "causal", None) is None:
        raise TypeError(
            f"{owner}: body must be a module such as jrnn.nn.RNN(cell, 3, rngs=nnx.Rngs(0)), got "
            f"{checks.describe(body)}"
        )


def convert_lists(owner: str, xs: Any, mask: Any, resets: Any) -> tuple[Any, Any, Any]:
    """Converts nested lists of numbers to arrays; returns other values unchanged."""
    named = {"xs": xs, "mask": mask, "resets": resets}
    return tuple(convert_nested_list(owner, value, name) for name, value in named.items())


def check_input_size(owner: str, layer: Layer, input_size: int, xs: Inputs) -> None:
    """Raises ValueError if inputs have another size than those for which a module was created.

    Args:
      owner: the name of the module.
      layer: the cell or layer of the module, or of its first layer.
      input_size: the input size of the module.
      xs: the inputs as the user passed them. Inputs with fewer than 3 axes, or of a type that the
        layer does not accept, are not validated here.
    """
    leaves = jax.tree.leaves(xs)
    if not leaves or any(jnp.ndim(leaf) < 2 for leaf in leaves):
        return
    size = find_input_size(layer, xs)
    if size is not None and size != input_size and max(map(jnp.ndim, leaves)) > 2:
        shape = next(jnp.shape(leaf) for leaf in leaves if jnp.shape(leaf)[-1] == size)
        raise ValueError(
            f"{owner}: xs must have a last axis of {input_size} (input_size), got shape {shape}; "
            f"or create the module with input_size={size}"
        )
