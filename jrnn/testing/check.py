"""`check_cell` and `check_layer`: the conformance suite as a user calls it."""

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
    jit_quickly,
    normal_inputs,
    randomized,
    require,
    take,
)
from jrnn.testing.properties import PROPERTIES


def check_cell(
    cell: Cell, input_size: int = 3, *, inputs: MakeInputs | None = None, seed: int = 0
) -> None:
    """Checks that a cell satisfies the contract of `jrnn.Cell`, and so is right on every engine.

    Parameters are random, biases included. The properties, each by its name:

    - frozen: a frozen dataclass, hashable, that prints as itself and survives pickling;
    - step: it is project, recur, update and readout, and keeps the structure of the carry;
    - readout: it depends on the parameters, the new carry and z alone;
    - leading_axes: each function returns the same with any leading axes;
    - sequence: `unroll` is a loop of steps, and of length 1 a step, with lengths, resets, reverse,
      on every engine that runs any cell, and for a linear one on `Associative`; changing the last
      input changes no output before it;
    - jit: compiled and not compiled are the same;
    - vmap: the same as a loop, and as a batch;
    - no_recompilation: an equal cell with new values does not compile again;
    - dtype: float32 and bfloat16 stay what they are, in the carry and in the output; complex
      numbers are complex64 for both; a `lax.scan` over `step` keeps the dtypes of its first carry;
    - gradients: finite, for parameters, inputs and carry, and right by finite differences;
    - taps: what `update` and `readout` tap can be read, and is the same under `jax.jit`;
    - structure: what `jrnn.structure` reads off the jaxpr holds for the derivatives;
    - coefficients: those of a linear cell give the step;
    - noise: that of a stochastic cell has the leading axes, and is a function of the key, the same
      on every engine; without a key there is none.

    Args:
      cell: the cell.
      input_size: passed to `cell.init`.
      inputs: `(key, leading) -> x`, for a cell whose inputs may not be any normal numbers; by
        default these, in the shapes of `cell.inputs`.
      seed: of all that is random.

    Raises:
      AssertionError: names every property that fails, and how.

    >>> import jrnn
    >>> check_cell(jrnn.Elman(hidden_size=2))
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"check_cell: cell must be a jrnn.Cell, got {cell!r}; see check_layer")
    key = jax.random.key(seed)
    inputs = normal_inputs(cell, input_size) if inputs is None else inputs
    failures = []
    try:
        init = jit_quickly(lambda key: cell.init(key, input_size, jnp.float32))
        params = randomized(init(key), key)
        case = Case(cell, params, inputs, key, input_size)
        with jax.disable_jit():
            cell.step(params, *as_jax((case.carry(BATCH), case.xs(BATCH))))
    except Exception as error:
        raise AssertionError(f"check_cell({cell!r}): one step fails: {error}") from error
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
    """Checks what any layer must satisfy: that `causal` is true, and `output_shape`.

    Changing the last input of a sequence must change no output before it if the layer says that it
    is causal, and must change one if it says that it is not.

    Args:
      layer: the layer, or a cell.
      input_size: passed to `layer.init`.
      inputs: as of `check_cell`.
      seed: of all that is random.

    Raises:
      AssertionError: one of them does not hold.

    >>> import jrnn
    >>> check_layer(jrnn.bidirectional(jrnn.Elman(hidden_size=2)))
    """
    key = jax.random.key(seed)
    inputs = normal_inputs(layer, input_size) if inputs is None else inputs
    params = randomized(jit_quickly(lambda key: layer.init(key, input_size, jnp.float32))(key), key)
    xs = as_numpy(inputs(jax.random.fold_in(key, 0), (STEPS, BATCH)))
    run = jit_quickly(lambda xs: unroll(layer, params, xs)[1])
    ys, others = (as_numpy(run(given)) for given in (xs, change_last_step(xs)))
    try:
        assert_close(take(others, slice(STEPS - 1)), take(ys, slice(STEPS - 1)), 0)
        changed = False
    except AssertionError:
        changed = True
    require(
        layer.causal != changed,
        f"check_layer({layer!r}): causal is {layer.causal}, but changing the last input "
        + ("changes earlier outputs" if changed else "changes no earlier output"),
    )
    expected, got = layer.output_shape(params, input_size), take(ys, 0, 0)
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    except AssertionError as error:
        raise AssertionError(f"check_layer({layer!r}): output_shape is wrong: {error}") from error
