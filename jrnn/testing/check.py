"""`check_cell` and `check_layer`, the functions that run the conformance suite."""

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
    MakeInputs,
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
    cell: Cell, input_size: int = 3, *, inputs: MakeInputs | None = None, seed: int = 0
) -> None:
    """Checks that a cell satisfies the contract of `jrnn.Cell`, so that every engine can run it.

    All parameters are random, including biases. The properties are:

    - frozen: the cell is a hashable frozen dataclass with a complete repr, and can be pickled;
    - step: equals project, recur, update and readout, and keeps the structure of the carry;
    - readout: depends only on the parameters, the new carry and z;
    - leading_axes: results do not depend on the number of leading axes;
    - sequence: `unroll` equals a loop of steps, with lengths, resets and reverse, on every engine
      that runs any cell, and for a linear cell on `Associative`; an earlier output does not depend
      on the last input;
    - jit: results are the same with and without compilation;
    - vmap: equals a loop over the batch, and a batched step;
    - no_recompilation: an equal cell with new values does not compile again;
    - dtype: carry and output have the dtype of the parameters and inputs, for float32 and bfloat16
      (complex64 if complex); a `lax.scan` over `step` accepts the initial carry;
    - gradients: those of parameters, inputs and carry are finite and equal finite differences;
    - taps: values tapped in `update` and `readout` can be captured, also under `jax.jit`;
    - structure: the derivatives have the structure that `jrnn.structure` infers from the jaxpr;
    - coefficients: those of a linear cell reproduce the step;
    - noise: that of a stochastic cell has the leading axes, depends only on the key, and is the
      same on every engine; without a key the cell is deterministic.

    Args:
      cell: the cell.
      input_size: passed to `cell.init`.
      inputs: a function `(key, leading) -> x` that samples inputs; by default normal numbers with
        the shapes of `cell.inputs`.
      seed: random seed.

    Raises:
      AssertionError: a property fails; the message describes all failures.

    >>> import jrnn
    >>> check_cell(jrnn.Elman(hidden_size=2))
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"check_cell: cell must be a jrnn.Cell, got {cell!r}; use check_layer")
    key = jax.random.key(seed)
    inputs = normal_inputs(cell, input_size) if inputs is None else inputs
    failures = []
    try:
        init = jit_unoptimized(lambda key: cell.init(key, input_size, jnp.float32))
        params = randomize(init(key), key)
        case = Case(cell, params, inputs, key, input_size)
        with jax.disable_jit():
            cell.step(params, *as_jax((case.carry(BATCH), case.xs(BATCH))))
    except Exception as error:
        raise AssertionError(f"check_cell({cell!r}): step raises: {error}") from error
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
    layer: Layer, input_size: int = 3, *, inputs: MakeInputs | None = None, seed: int = 0
) -> None:
    """Checks that `causal` and `output_shape` of a layer are correct.

    If `causal` is True, earlier outputs must not depend on the last input; if it is False, they
    must.

    Args:
      layer: the layer, or a cell.
      input_size: passed to `layer.init`.
      inputs: as in `check_cell`.
      seed: random seed.

    Raises:
      AssertionError: `causal` or `output_shape` is wrong.

    >>> import jrnn
    >>> check_layer(jrnn.bidirectional(jrnn.Elman(hidden_size=2)))
    """
    key = jax.random.key(seed)
    inputs = normal_inputs(layer, input_size) if inputs is None else inputs
    params = randomize(
        jit_unoptimized(lambda key: layer.init(key, input_size, jnp.float32))(key), key
    )
    xs = as_numpy(inputs(jax.random.fold_in(key, 0), (STEPS, BATCH)))
    run = jit_unoptimized(lambda xs: unroll(layer, params, xs)[1])
    ys, changed_ys = (as_numpy(run(inputs)) for inputs in (xs, change_last_step(xs)))
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
