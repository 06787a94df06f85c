"""Validation of the arguments that the modules of `jrnn.nn` share."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from flax import nnx

from jrnn import checks
from jrnn.layer import convert_nested_list

P = ParamSpec("P")

OPTIONS_OF_OTHERS = {
    "batch_first": "inputs are (batch, time, input) by default; for (time, batch, input) use "
    "time_major=True",
    "nonlinearity": "use StackedRNN(jrnn.Elman(64, activation='relu'), ...)",
    "bias": "use the option bias of the cell, such as StackedRNN(jrnn.Elman(64, bias=False), ...)",
    "device": "use jax.default_device or jax.device_put",
    "rng": "use rngs=nnx.Rngs(0)",
    "units": "use hidden_size",
    "features": "use hidden_size",
    "recurrent_dropout": "use jrnn.transforms.weight_drop or jrnn.transforms.dropout on the cell",
    "activation": "use the options of the cell, such as StackedRNN(jrnn.Elman(64, "
    "activation='relu'), ...)",
    "return_sequences": "the outputs of all steps are returned; use jrnn.nn.Classifier for one "
    "output for each sequence",
    "return_state": "the carry is always returned, as the first result",
    "return_carry": "the carry is always returned, as the first result",
    "go_backwards": "use jrnn.nn.RNN(cell, input_size, reverse=True, ...)",
}
"""Options of PyTorch, Keras and flax that the modules lack, and what to use instead of each."""


def explain_options(init: Callable[P, None]) -> Callable[P, None]:
    """Returns a constructor that raises a TypeError for options of other libraries.

    The message names the equivalent in jrnn. For other unknown options `init` itself raises.
    """
    known = inspect.signature(init).parameters

    @functools.wraps(init)
    def explained_init(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name in OPTIONS_OF_OTHERS and name not in known:
                raise TypeError(
                    f"{type(args[0]).__name__}: {name} is not an argument; "
                    f"{OPTIONS_OF_OTHERS[name]}"
                )
        init(*args, **kwargs)

    return explained_init


def check_rngs(owner: str, rngs: Any) -> None:
    """Raises a TypeError unless the value is an `nnx.Rngs`."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(
            f"{owner}: rngs must be random streams such as nnx.Rngs(0), got {checks.describe(rngs)}"
        )


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
