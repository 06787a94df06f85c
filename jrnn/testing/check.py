"""The functions `check_cell` and `check_layer`, which run the conformance suite."""

import chex
import jax
import jax.numpy as jnp

from jrnn.cell import Cell
from jrnn.engines import unroll
from jrnn.layer import Layer
from jrnn.testing.case import (
    BATCH,
    STEPS,
    Case,
    InputSampler,
    as_jax,
    as_numpy,
    assert_close,
    change_last_step,
    jit_unoptimized,
    normal_inputs,
    randomize,
    require,
    take,
)
from jrnn.testing.properties import PROPERTIES


def check_cell(
    cell: Cell, input_size: int = 3, *, sample_inputs: InputSampler | None = None, seed: int = 0
) -> None:
    """Checks that a cell obeys the contract of `jrnn.Cell`, so that every engine can run it.

    All parameters are random, including biases. The checked properties are:

    - frozen: the cell is a hashable frozen dataclass with the name of its class in its repr, and
      can be pickled;
    - step: `step` returns the results of `project`, `recur`, `update` and `readout`, and preserves
      the structure, shapes and dtypes of the carry;
    - recur: `recur` is linear in the carry;
    - readout: `readout` depends only on the parameters, the new carry and z;
    - leading_axes: results do not depend on the number of leading axes;
    - sequence: `unroll` equals a loop of steps, with lengths, resets and reverse, on every engine
      that runs all cells, and for a linear cell also on `Associative`; an output does not depend on
      later inputs;
    - jit: the results of `step` are the same with and without `jax.jit`;
    - vmap: `jax.vmap` of `step` equals a loop over the batch, and a step of the batch;
    - no_recompilation: a second call with an equal cell and other arrays does not retrace;
    - dtype: parameters, carry and output have the dtype passed to `init`, if the inputs have it
      too, for float32 and bfloat16 (complex64 for complex leaves); a `lax.scan` over `step` accepts
      the initial carry;
    - gradients: the gradients of parameters, inputs and carry are finite and equal finite
      differences, in one random direction for each array;
    - taps: values tapped in `update` and `readout` can be captured, also under `jax.jit`;
    - structure: the derivatives have the structure that `jrnn.structure` infers from the jaxpr;
    - coefficients: the coefficients of a linear cell reproduce the step;
    - noise: the noise of a stochastic cell has the leading axes, depends only on the key, and is
      the same on every engine; without a key the cell is deterministic.

    Args:
      cell: the cell.
      input_size: passed to `cell.init`.
      sample_inputs: a function `(key, leading) -> x` that samples inputs `[*leading, input]`, or a
        pytree of inputs; by default normal numbers with the shapes of `cell.inputs`.
      seed: random seed.

    Raises:
      AssertionError: `init` or `step` raises, or a property does not hold; the message describes
        all failures.
      TypeError: `cell` is not a `jrnn.Cell`.

    >>> import jrnn
    >>> check_cell(jrnn.Elman(hidden_size=2))
    """
    if not isinstance(cell, Cell):
        raise TypeError(
            f"check_cell: cell must be a jrnn.Cell, got {cell!r}; use check_layer for a layer"
        )
    key = jax.random.key(seed)
    if sample_inputs is None:
        sample_inputs = normal_inputs(cell, input_size)
    failures = []
    try:
        init = jit_unoptimized(lambda key: cell.init(key, input_size, jnp.float32))
        params = randomize(init(key), key)
        case = Case(cell, params, sample_inputs, key, input_size)
        with jax.disable_jit():
            cell.step(params, *as_jax((case.carry(BATCH), case.xs(BATCH))))
    except Exception as error:
        raise AssertionError(f"check_cell({cell!r}): init or step raises: {error}") from error
    for name, check in PROPERTIES.items():
        try:
            check(case)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip()[:600]}")
    if failures:
        raise AssertionError(
            f"check_cell({cell!r}): {len(failures)} of {len(PROPERTIES)} properties fail\n- "
            + "\n- ".join(failures)
        )


def check_layer(
    layer: Layer, input_size: int = 3, *, sample_inputs: InputSampler | None = None, seed: int = 0
) -> None:
    """Checks that `causal` and `output_shape` of a layer are correct.

    Outputs at earlier steps must not depend on the last input if `causal` is True, and must depend
    on it if `causal` is False.

    Args:
      layer: the layer, or a cell.
      input_size: passed to `layer.init`.
      sample_inputs: as in `check_cell`.
      seed: random seed.

    Raises:
      AssertionError: `causal` or `output_shape` is wrong.

    >>> import jrnn
    >>> check_layer(jrnn.bidirectional(jrnn.Elman(hidden_size=2)))
    """
    key = jax.random.key(seed)
    if sample_inputs is None:
        sample_inputs = normal_inputs(layer, input_size)
    params = randomize(
        jit_unoptimized(lambda key: layer.init(key, input_size, jnp.float32))(key), key
    )
    xs = as_numpy(sample_inputs(jax.random.fold_in(key, 0), (STEPS, BATCH)))
    run = jit_unoptimized(lambda xs: unroll(layer, params, xs)[1])
    ys, changed_ys = as_numpy(run(xs)), as_numpy(run(change_last_step(xs)))
    try:
        assert_close(take(changed_ys, slice(STEPS - 1)), take(ys, slice(STEPS - 1)), 0)
        depends = False
    except AssertionError:
        depends = True
    require(
        layer.causal != depends,
        f"check_layer({layer!r}): causal is {layer.causal}, but earlier outputs "
        + ("depend" if depends else "do not depend")
        + " on the last input",
    )
    expected, got = layer.output_shape(params, input_size), take(ys, 0, 0)
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    except AssertionError as error:
        raise AssertionError(f"check_layer({layer!r}): output_shape is wrong: {error}") from error
