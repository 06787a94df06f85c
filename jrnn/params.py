"""Validation of parameters and of the type of inputs, for all functions that take parameters.

The expected shapes and dtypes of parameters are those that `Layer.init` returns for the input size
of `xs`. `init` is traced without computing anything, and the result is cached for each layer and
input size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrnn import checks
from jrnn.dataclass_tree import dataclasses_in
from jrnn.dtypes import dtype_kind
from jrnn.layer import Inputs, Layer, Params
from jrnn.trees import describe_structure

MAX_CANDIDATES = 16
"""The largest number of input sizes that are tried to explain why parameters do not fit."""


class _Signature(NamedTuple):
    """Structure, shapes and dtypes of a pytree."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]


def conform_params(
    owner: str, layer: Layer, params: Params, xs: Inputs, name: str = "xs"
) -> Params:
    """Returns the parameters, validated against those that `init` returns for these inputs.

    Dicts with the names of the fields, as orbax returns them, are converted to the NamedTuples of
    the layer. Dtypes may differ in precision. The type of the inputs must be valid; see
    `check_input_type`. Parameters are returned unchanged, without validation, if the input size is
    unknown or `init` cannot be traced.

    Args:
      owner: the function that the user called, for error messages.
      layer: a cell or a layer.
      params: its parameters.
      xs: inputs, with any leading axes.
      name: the argument of the user that holds the inputs.

    Raises:
      TypeError: `params` does not have the type that `init` returns.
      ValueError: the structure, a shape or a dtype within `params` is wrong.
    """
    size = find_input_size(layer, xs)
    expected, signature = _expected_params(layer, size) if size else (None, None)
    if signature is None or _signature(params) == signature:
        return params
    converted = _convert_dicts(expected, params)
    if _signature(converted) == signature:
        return converted
    other = _find_fitting_size(layer, converted, size)
    if other is not None:
        raise ValueError(
            f"{owner}: {name} must have a last axis of {other} (input_size of the parameters), got "
            f"shape {_shape(_input_leaf(layer, xs))}; or use {type(layer).__name__}.init(key, "
            f"{size})"
        )
    error = ValueError if type(converted) is type(expected) else TypeError
    raise error(
        f"{owner}: params must be those of {checks.describe(layer)} for inputs of size {size}, got "
        f"{_describe_difference(expected, converted)}; {_remedy(layer, params, size)}"
    )


def convert_params(owner: str, layer: Layer, params: Params) -> Params:
    """Returns the parameters for a function without inputs; dicts are converted.

    Shapes are not validated, since they depend on the input size.

    Args:
      owner: the function that the user called, for error messages.
      layer: a cell or a layer.
      params: its parameters.

    Raises:
      TypeError: `params` has another type than the parameters of the layer.
    """
    if getattr(type(params), "_fields", None) is not None or _is_array(params):
        return params
    sizes = {axis for leaf in jax.tree.leaves(params) for axis in _shape(leaf)} - {0}
    for size in sorted(sizes)[:MAX_CANDIDATES] or [1]:
        try:
            expected, signature = _expected_params(layer, size)
        except (TypeError, ValueError):  # the layer has no such input size
            continue
        converted = _convert_dicts(expected, params)
        is_of_type = type(converted) is type(expected)
        if signature is None or (is_of_type and _length(converted) == _length(expected)):
            return converted
        raise TypeError(
            f"{owner}: params must be those of {checks.describe(layer)}, got "
            f"{checks.describe(params)}; {_remedy(layer, params, 'input_size')}"
        )
    return params


def _length(params: Params) -> int | None:
    """Returns the number of entries of a tuple, such as the layers of a stack."""
    return len(params) if isinstance(params, tuple) else None


def _remedy(layer: Layer, params: Params, size: int | str | None) -> str:
    """Returns where the right parameters are found."""
    if any(map(_is_of_flax, jax.tree.leaves(params, is_leaf=_is_of_flax))):
        return "use the attribute params of the module"
    return f"use {type(layer).__name__}.init(key, {size})"


def refuse_non_arrays(owner: str, **arguments: Any) -> None:
    """Raises TypeError unless each leaf is a number or an array of numbers, bools or PRNG keys.

    JAX raises for other leaves as well, with a message about `jax.jit`.
    """
    for name, argument in arguments.items():
        for leaf in jax.tree.leaves(argument):
            is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
            if isinstance(leaf, bool | int | float | complex):
                continue
            if not is_array or not (
                jnp.issubdtype(leaf.dtype, jnp.number) or _is_key_or_bool(leaf)
            ):
                source = ", such as those of cell.init" if name == "params" else ""
                raise TypeError(
                    f"{owner}: {name} must consist of arrays{source}, got {checks.describe(leaf)}"
                )


def _is_key_or_bool(leaf: Any) -> bool:
    return leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _is_of_flax(node: Any) -> bool:
    """Returns whether the type of a node is defined in flax, such as `nnx.State` or `nnx.Param`."""
    return type(node).__module__.startswith("flax.")


@functools.lru_cache(maxsize=256)
def _expected_params(layer: Layer, input_size: int) -> tuple[Params, _Signature | None]:
    """Returns the shapes and dtypes of `init`, and their signature.

    Both are None if `init` cannot be traced.
    """
    try:
        params = jax.eval_shape(lambda: layer.init(jax.random.key(0), input_size))
    except jax.errors.JAXTypeError:  # `init` depends on the values of its key
        return None, None
    return params, _signature(params)


@functools.lru_cache(maxsize=256)
def _example_inputs(layer: Layer) -> tuple[Inputs, int | None]:
    """Returns the shapes of one step's input, and which leaf has the input size as its last axis.

    The index of this leaf is None if the last axis of no leaf is the input size.
    """
    one, two = (jax.eval_shape(lambda size=size: layer.inputs(size, ())) for size in (1, 2))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    last_axes = [(a.shape[-1:], b.shape[-1:]) for a, b in pairs]
    return one, last_axes.index(((1,), (2,))) if ((1,), (2,)) in last_axes else None


def check_input_type(
    owner: str, layer: Layer, params: Params, xs: Inputs, name: str = "xs"
) -> None:
    """Raises a TypeError unless the inputs have a type that the layer accepts.

    A layer accepts the type of `layer.inputs`, the types in `layer.input_types`, and any type that
    the user has defined. A layer of the user, also in a transform, may accept any
    structure of arrays, since it need not implement `inputs`.
    """
    example, _ = _example_inputs(layer)
    if _has_structure(xs, example) or isinstance(xs, layer.input_types) or _is_user_class(type(xs)):
        return
    if (
        any(map(_is_user_class, dataclasses_in(layer)))
        and not _is_array(xs)
        and not _is_array(params)
    ):
        return
    if _is_array(params) and not _is_array(xs) and _is_array(example):
        raise TypeError(
            f"{owner}: params must be those of {checks.describe(layer)}, got "
            f"{checks.describe(params)}, and {name} of type {type(xs).__name__}; the order of the "
            f"arguments is {owner}(layer, params, {name})"
        )
    expected = [describe_structure(example), *(kind.__name__ for kind in layer.input_types)]
    raise TypeError(
        f"{owner}: {name} must be {' or '.join(expected)} for {checks.describe(layer)}, got "
        f"{checks.shorten(describe_structure(xs))}"
    )


def _is_user_class(cls: type) -> bool:
    """Returns whether a class is not defined in Python, NumPy, JAX or jrnn."""
    known = ("builtins", "numpy", "jax", "jaxlib", "jrnn", "collections")
    return cls.__module__.partition(".")[0] not in known


def find_input_size(layer: Layer, xs: Inputs) -> int | None:
    """Returns the input size of `xs`, 0 for an array without axes, or None if it is unknown."""
    example, index = _example_inputs(layer)
    if index is None and _has_structure(xs, example):
        return None
    if not _has_structure(xs, example) and not isinstance(xs, layer.input_types):
        return None
    leaf = _input_leaf(layer, xs)
    return jnp.shape(leaf)[-1] if jnp.ndim(leaf) else 0


def _input_leaf(layer: Layer, xs: Inputs) -> Any:
    """Returns the leaf of the inputs whose last axis is the input size."""
    if isinstance(xs, jax.Array):
        return xs
    example, index = _example_inputs(layer)
    is_known = index is not None and _has_structure(xs, example)
    return jax.tree.leaves(xs)[index if is_known and index is not None else 0]


def _has_structure(xs: Inputs, example: Inputs) -> bool:
    if isinstance(xs, jax.Array) and isinstance(example, jax.ShapeDtypeStruct):
        return True
    return jax.tree.structure(xs) == jax.tree.structure(example)


def _is_array(tree: Any) -> bool:
    """Returns whether a pytree is a single leaf."""
    return jax.tree_util.all_leaves([tree]) and tree is not None


def _signature(tree: Any) -> _Signature:
    leaves, structure = jax.tree.flatten(tree)
    return _Signature(structure, tuple(map(_shape, leaves)), tuple(map(dtype_kind, leaves)))


def _shape(leaf: Any) -> tuple[int, ...]:
    shape = getattr(leaf, "shape", None)
    return tuple(jnp.shape(leaf)) if shape is None else shape


def _convert_dicts(expected: Any, tree: Any) -> Any:
    """Converts dicts and lists in a pytree to the NamedTuples and tuples of `expected`.

    A dict must have the fields of the NamedTuple as its keys, or the indices of the tuple. Fields
    that are None in `expected`, such as absent peepholes, may be missing. A part with other keys or
    another length is returned unchanged.
    """
    fields = getattr(type(expected), "_fields", None)
    if fields is not None and type(tree) is dict:
        absent = {name for name in fields if getattr(expected, name) is None}
        if not set(fields) - absent <= set(tree) <= set(fields):
            return tree
        parts = (_convert_dicts(getattr(expected, name), tree.get(name)) for name in fields)
        return type(expected)(*parts)
    if type(expected) is tuple and type(tree) is dict:
        keys = [str(n) for n in range(len(expected))]
        tree = [tree[key] for key in keys] if sorted(keys) == sorted(map(str, tree)) else tree
    is_sequence = isinstance(expected, tuple) and type(tree) in (list, tuple, type(expected))
    if (
        is_sequence
        and len(tree) == len(expected)
        and (fields is None or type(tree) is type(expected))
    ):
        parts = [_convert_dicts(e, t) for e, t in zip(expected, tree, strict=True)]
        return type(expected)(parts) if fields is None else type(expected)(*parts)
    return tree


def _find_fitting_size(layer: Layer, params: Params, size: int | None) -> int | None:
    """Returns another input size for which the parameters are valid, or None."""
    sizes = {axis for leaf in jax.tree.leaves(params) for axis in _shape(leaf)} - {0, size}
    for candidate in sorted(sizes)[:MAX_CANDIDATES]:
        try:
            _, signature = _expected_params(layer, candidate)
        except (TypeError, ValueError):  # the layer has no such input size
            continue
        if signature == _signature(params):
            return candidate
    return None


def _describe_difference(expected: Any, params: Any) -> str:
    """Returns the first difference between parameters and the expected ones."""
    if type(params) is not type(expected) and not (_is_array(expected) and _is_array(params)):
        return checks.describe(params)
    named, got = _leaves_by_name(expected), _leaves_by_name(params)
    for name, leaf in named.items():
        if name not in got:
            return checks.shorten(f"no {name}")
        want, other = _describe_leaf(leaf), _describe_leaf(got[name])
        if want != other:
            return checks.shorten(f"{name}: {other} instead of {want}")
        if leaf is not None and dtype_kind(got[name]) != dtype_kind(leaf):
            dtypes = jnp.result_type(got[name]), jnp.result_type(leaf)
            return checks.shorten(f"{name}: dtype {dtypes[0]} instead of {dtypes[1]}")
    extra = next((name for name in got if name not in named), None)
    return "another structure" if extra is None else checks.shorten(f"an unknown {extra}")


def _describe_leaf(leaf: Any) -> str:
    return "None" if leaf is None else f"shape {_shape(leaf)}"


def _leaves_by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by path, such as `0.w_ih`; None counts as a leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator=".") or "params": leaf for path, leaf in leaves}
