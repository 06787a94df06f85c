"""Cells of equinox in `jax.vmap` and `lax.scan`, as in the documentation of equinox."""
# pyright: reportMissingImports=false

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jrnn.bench.implementations import Case, Implementation, JaxModel, compile_model, select_layer

CELLS: dict[str, Any] = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}


def build(case: Case) -> list[Implementation]:
    """Returns one implementation, with the cell of the case."""
    cell_class = select_layer("equinox", case, CELLS)
    cell = cell_class(case.shape.input, case.shape.hidden, key=jax.random.key(0))
    params, static = eqx.partition(cell, eqx.is_inexact_array)

    def apply(params: Any, xs: jax.Array) -> jax.Array:
        cell = jax.vmap(eqx.combine(params, static))
        zeros = jnp.zeros((xs.shape[1], case.shape.hidden), xs.dtype)
        carry = (zeros, zeros) if case.cell == "lstm" else zeros

        def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            carry = cell(x, carry)
            return carry, carry[0] if case.cell == "lstm" else carry

        _, ys = jax.lax.scan(step, carry, xs)
        return ys

    return [compile_model(JaxModel(f"equinox {cell_class.__name__}", apply, params), case)]
