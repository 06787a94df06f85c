"""Messages for calls whose arguments do not fit the signature, in place of those of Python.

A message names the class or function that the user called. For an argument of PyTorch, Keras or
flax that jrnn lacks, it says what to use instead.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from jrnn import checks

P = ParamSpec("P")
T = TypeVar("T")

SYNONYMS = {
    "batch_sizes": ("lengths",),
    "embed": ("embedding",),
    "epochs": ("steps",),
    "features": ("hidden_size", "output_size"),
    "h0": ("carry",),
    "hidden": ("hidden_size", "carry"),
    "hidden_dim": ("hidden_size",),
    "hx": ("carry",),
    "in_features": ("input_size",),
    "initial_carry": ("carry",),
    "initial_state": ("carry",),
    "input": ("xs",),
    "inputs": ("xs",),
    "input_dim": ("input_size",),
    "lr": ("learning_rate",),
    "n_layers": ("num_layers",),
    "nonlinearity": ("activation",),
    "num_classes": ("output_size",),
    "num_hidden": ("hidden_size",),
    "num_outputs": ("output_size",),
    "num_units": ("hidden_size",),
    "out_features": ("output_size",),
    "p": ("dropout",),
    "pooling": ("pool",),
    "rng": ("rngs", "key"),
    "rngs": ("key",),
    "rnn": ("body", "cell"),
    "segment_ids": ("resets",),
    "seq_lengths": ("lengths",),
    "sequence_length": ("lengths",),
    "state": ("carry",),
    "units": ("hidden_size", "output_size"),
    "use_bias": ("bias",),
    "wd": ("weight_decay",),
    "x": ("xs",),
}
"""Names in other libraries, and the names that the same arguments may have in jrnn."""

_TRAINING = "call train() or eval() of the module"

SEQUENCE_HINTS = {
    "batch_first": "jrnn.unroll takes inputs (time, batch, input), and the modules of jrnn.nn take "
    "(batch, time, input)",
    "deterministic": _TRAINING,
    "return_sequences": "the outputs of all steps are always returned",
    "return_state": "the carry is always returned, as the first result",
    "time_major": "jrnn.unroll takes inputs (time, batch, input), and time_major is an argument of "
    "the constructor of a module of jrnn.nn",
    "train": _TRAINING,
    "training": _TRAINING,
}
"""What to do instead of arguments of other libraries, for functions that run over sequences."""

_VALUES = {"rngs": "nnx.Rngs(0)"}
"""Examples of the values of arguments."""

_POSITIONAL = {
    "hidden_size": "the input size is an argument of init; layers with the arguments of PyTorch, "
    "such as jrnn.nn.LSTM(3, 8, rngs=nnx.Rngs(0)), are in jrnn.nn",
    "layers": "pass one list, as in jrnn.stack([jrnn.LSTM(64), jrnn.GRU(64)])",
}
"""What to do about too many positional arguments, by the last parameter that may be positional."""


def explain_signature(
    hints: Mapping[str, str] | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Returns a decorator of functions and methods that explains arguments that do not fit.

    Args:
      hints: for arguments of other libraries that the function lacks, what to do instead; and by
        "*" what holds for arguments by position, in place of a list of their names.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        is_method = next(iter(signature.parameters), "") == "self"

        @functools.wraps(function)
        def explained(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except TypeError:
                owner = getattr(function, "__name__", "")
                if is_method and args:
                    cls = type(args[0]).__name__
                    owner = cls if owner in ("__init__", "__call__") else f"{cls}.{owner}"
                check_arguments(owner, signature, args, kwargs, hints or {})
                raise

        return explained

    return decorate


def check_arguments(
    owner: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    hints: Mapping[str, str],
    *,
    allow_missing: bool = False,
) -> None:
    """Raises TypeError if arguments do not fit a signature.

    Args:
      owner: the class or function that the user called.
      signature: its signature, with `self` if it is a method.
      args: the positional arguments, with `self` if it is a method.
      kwargs: the arguments that were passed by name.
      hints: for arguments of other libraries that the function lacks, what to do instead.
      allow_missing: whether required arguments may be missing.
    """
    try:
        signature.bind_partial(*args, **kwargs) if allow_missing else signature.bind(
            *args, **kwargs
        )
    except TypeError as error:
        message = _describe_misfit(signature.parameters, args, kwargs, hints)
        raise TypeError(f"{owner}: {message}") from error


def _describe_misfit(
    parameters: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    hints: Mapping[str, str],
) -> str:
    """Returns what is wrong with arguments that do not fit."""
    positional = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    known = [name for name in parameters if name != "self"]
    for name in kwargs:
        if name not in known:
            return f"{checks.shorten(name)} is not an argument{_hint(name, known, hints)}"
    if len(args) > len(positional):
        return _describe_positional(positional, args, parameters, hints.get("*"))
    for name in positional[: len(args)]:
        if name in kwargs:
            return f"{name} must be passed once, got it by position and by name"
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and name not in kwargs and name not in positional[: len(args)]
    ]
    name = missing[0]
    remedy = f"; pass {name}={_VALUES[name]}" if name in _VALUES else ""
    return f"{name} must be passed, got no value{remedy}"


def _hint(name: str, known: list[str], hints: Mapping[str, str]) -> str:
    """Returns what to use in place of an unknown argument, such as "; use carry"."""
    if name in hints:
        return f"; {hints[name]}"
    same = next((each for each in SYNONYMS.get(name, ()) if each in known), None)
    if same is not None:
        return f"; use {same}"
    similar = checks.suggestion(name, known)
    return similar or f"; the arguments are {checks.shorten(', '.join(known))}"


def _describe_positional(
    positional: list[str],
    args: tuple[Any, ...],
    parameters: Mapping[str, inspect.Parameter],
    requirement: str | None,
) -> str:
    """Returns what is wrong with too many positional arguments.

    `requirement` is what holds for them; None lists the names of those that may be positional.
    """
    is_method = positional[:1] == ["self"]
    names, count = positional[is_method:], len(args) - is_method
    by_name = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    remedy = _POSITIONAL.get(names[-1], "") if names else ""
    if not remedy and by_name:
        value = _VALUES.get(by_name[0], by_name[0])
        remedy = f"pass the others by name, as in {by_name[0]}={value}"
    expected = f"only {', '.join(names)}" if names else "no argument"
    plural = "argument" if count == 1 else "arguments"
    requirement = requirement or f"{expected} may be passed by position"
    message = f"{requirement}, got {count} positional {plural}"
    return f"{message}; {remedy}" if remedy else message
