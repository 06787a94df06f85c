"""Cells equal those of flax, haiku, equinox and keras, including gradients.

The MGU of flax differs from the paper and from `jrnn.MGU`: its gate multiplies the old state, and
its reset is applied after the product. Without the reset it equals `jrnn.UGRNN`.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import jrnn
from jrnn import Cell
from tests.helpers import assert_close, random_batch, random_params

STEPS, BATCH, INPUT, HIDDEN = 7, 4, 3, 5

# Runs a cell of a library over time-major inputs; only keras uses the mask `[B, T]`:
# (weights, [h, c] or [h], xs, mask) -> (final states, ys).
Run = Callable[[Any, list[Any], Any, Any], tuple[list[Any], Any]]


def as_carry(states: list[Any]) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def run_nnx(kind: str) -> Run:
    graph = nnx.graphdef(getattr(nnx, kind)(INPUT, HIDDEN, rngs=nnx.Rngs(0)))

    def run(weights: Any, states: list[Any], xs: Any, mask: None) -> tuple[list[Any], Any]:
        cell: Any = nnx.merge(graph, weights)
        last, ys = lax.scan(cell, as_carry(states[::-1]), xs)
        return jax.tree.leaves(last)[::-1], ys

    return run


def run_linen(kind: str, *sizes: Any, **options: Any) -> Run:
    cell = getattr(linen, kind)(*sizes, **options)

    def run(weights: Any, states: list[Any], xs: Any, mask: None) -> tuple[list[Any], Any]:
        last, ys = lax.scan(partial(cell.apply, {"params": weights}), as_carry(states[::-1]), xs)
        return jax.tree.leaves(last)[::-1], ys

    return run


def run_haiku(kind: str, *sizes: Any) -> Run:
    hk = pytest.importorskip("haiku")
    core = hk.transform(lambda x, state: getattr(hk, kind)(*sizes, name="core")(x, state))

    def run(weights: Any, states: list[Any], xs: Any, mask: None) -> tuple[list[Any], Any]:
        step = lambda state, x: core.apply(weights, None, x, state)[::-1]
        first = hk.LSTMState(*states) if len(states) > 1 else states[0]
        last, ys = lax.scan(step, first, xs)
        return jax.tree.leaves(last), ys

    return run


def run_equinox(kind: str) -> Run:
    eqx = pytest.importorskip("equinox")
    template = getattr(eqx.nn, kind)(INPUT, HIDDEN, key=jax.random.key(0))

    def run(weights: Any, states: list[Any], xs: Any, mask: None) -> tuple[list[Any], Any]:
        where = lambda cell: [getattr(cell, name) for name in weights]
        cell = eqx.tree_at(where, template, list(weights.values()))

        def step(state: Any, x: Any) -> tuple[Any, Any]:
            state = jax.vmap(cell)(x, state)
            return state, jax.tree.leaves(state)[0]

        last, ys = lax.scan(step, as_carry(states), xs)
        return jax.tree.leaves(last), ys

    return run


def run_keras(kind: str, *sizes: Any, spatial_shape: tuple[int, ...] = (), **options: Any) -> Run:
    os.environ.setdefault("KERAS_BACKEND", "jax")  # keras reads it when imported
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip(f"the backend of keras is {keras.backend.backend()}")
    options = {"return_sequences": True, "return_state": True, **options}
    layer = getattr(keras.layers, kind)(*sizes, **options)
    layer.build((BATCH, STEPS, *spatial_shape, INPUT))
    rest = [variable.value for variable in layer.non_trainable_variables]

    def run(weights: Any, states: list[Any], xs: Any, mask: Any) -> tuple[list[Any], Any]:
        values = [weights[variable.name] for variable in layer.trainable_variables]
        xs = jnp.swapaxes(xs, 0, 1)
        (ys, *last), _ = layer.stateless_call(values, rest, xs, initial_state=states, mask=mask)
        return last, jnp.swapaxes(ys, 0, 1)

    return run


def split(leaf: Any, gates: str) -> dict[str, Any]:
    """Splits `[..., G·hidden]` into the gates."""
    return dict(zip(gates, jnp.split(leaf, len(gates), axis=-1), strict=True))


def reorder(leaf: Any, ours: str, theirs: str) -> Any:
    """Changes the order of the gates in `[..., G·hidden]` from `ours` to `theirs`."""
    parts = split(leaf, ours)
    return jnp.concatenate([parts[gate] for gate in theirs], axis=-1)


def subtract_forget_bias(b: Any) -> Any:
    """Subtracts 1 from the bias of f, for a library that adds it at each step."""
    return b - jnp.repeat(jnp.array([0.0, 1, 0, 0]), HIDDEN)


def nnx_lstm(p: Any) -> Any:
    w_ih, w_hh, b = (split(leaf, "ifgo") for leaf in (p.w_ih, p.w_hh, p.b))
    x = {"if_" if gate == "f" else f"i{gate}": {"kernel": w_ih[gate]} for gate in "ifgo"}
    return x | {f"h{gate}": {"kernel": w_hh[gate], "bias": b[gate]} for gate in "ifgo"}


def nnx_optimized_lstm(p: Any) -> Any:
    return {"dense_i": {"kernel": p.w_ih}, "dense_h": {"kernel": p.w_hh, "bias": p.b}}


def nnx_concatenated(p: Any) -> Any:
    return {"dense_i": {"kernel": p.w_ih, "bias": p.b}, "dense_h": {"kernel": p.w_hh}}


def linen_separate(p: Any, ours: str, theirs: str) -> Any:
    w_ih, w_hh, b = (split(leaf, ours) for leaf in (p.w_ih, p.w_hh, p.b))
    names = list(zip(ours, theirs, strict=True))
    x = {f"i{name}": {"kernel": w_ih[gate], "bias": b[gate]} for gate, name in names}
    return x | {f"h{name}": {"kernel": w_hh[gate]} for gate, name in names}


def linen_gru(p: Any) -> Any:
    weights = linen_separate(p, "rzn", "rzn")
    weights["hn"]["bias"] = p.b_hn
    return weights


def convolutions(p: Any, layers: tuple[str, str], names: tuple[str, str]) -> Any:
    """Returns the weights of a ConvLSTM of flax or haiku, which adds 1 to the bias of f."""
    b = subtract_forget_bias(p.b)
    # The library has two biases, whose sum is the bias of jrnn.
    values = zip(layers, ((p.w_ih, 0.75 * b), (p.w_hh, 0.25 * b)), strict=True)
    in_order = lambda leaves: [reorder(leaf, "ifgo", "igfo") for leaf in leaves]
    return {layer: dict(zip(names, in_order(leaves), strict=True)) for layer, leaves in values}


def linen_convolutions(p: Any) -> Any:
    return convolutions(p, ("ih", "hh"), ("kernel", "bias"))


def haiku_convolutions(p: Any) -> Any:
    return convolutions(p, ("core/input_to_hidden", "core/hidden_to_hidden"), ("w", "b"))


def haiku_lstm(p: Any) -> Any:
    w, b = jnp.concatenate([p.w_ih, p.w_hh]), subtract_forget_bias(p.b)
    return {"core/linear": {"w": reorder(w, "ifgo", "igfo"), "b": reorder(b, "ifgo", "igfo")}}


def haiku_gru(p: Any) -> Any:
    # z in haiku is 1 - z in jrnn.
    negated = lambda leaf: leaf * jnp.repeat(jnp.array([1.0, -1, 1]), HIDDEN)
    names = {"w_i": p.w_ih, "w_h": p.w_hh, "b": p.b}
    return {"core": {name: reorder(negated(leaf), "rzn", "zrn") for name, leaf in names.items()}}


def haiku_elman(p: Any) -> Any:
    # The library has two biases, whose sum is the bias of jrnn.
    x, h = {"w": p.w_ih, "b": 0.75 * p.b}, {"w": p.w_hh, "b": 0.25 * p.b}
    return {"core/linear": x, "core/linear_1": h}


def equinox_lstm(p: Any) -> Any:
    return {"weight_ih": p.w_ih.T, "weight_hh": p.w_hh.T, "bias": p.b}


def equinox_gru(p: Any) -> Any:
    return equinox_lstm(p) | {"bias_n": p.b_hn}


def keras_concatenated(p: Any) -> Any:
    return {"kernel": p.w_ih, "recurrent_kernel": p.w_hh, "bias": p.b}


def keras_gru(p: Any) -> Any:
    weights = {name: reorder(leaf, "rzn", "zrn") for name, leaf in keras_concatenated(p).items()}
    if p.b_hn is not None:
        z, r, n = split(weights["bias"], "zrn").values()
        # The library has two biases, whose sum is the bias of jrnn for z and r; for n jrnn has two.
        x, h = [0.75 * z, 0.75 * r, n], [0.25 * z, 0.25 * r, p.b_hn]
        weights["bias"] = jnp.stack([jnp.concatenate(x), jnp.concatenate(h)])
    return weights


class LibraryCase(NamedTuple):
    """A cell, and the equivalent cell of a library.

    Attributes:
      cell: the cell of jrnn.
      make: returns a function that runs the cell of the library.
      weights: converts parameters of jrnn to weights of the library.
      missing: parameters that the library does not have; they are set to 0 in jrnn.
    """

    cell: Cell
    make: Callable[[], Run]
    weights: Callable[[Any], Any]
    missing: tuple[str, ...] = ()


LSTM, ELMAN = jrnn.LSTM(HIDDEN), jrnn.Elman(HIDDEN)
GRU, GRU_BEFORE = jrnn.GRU(HIDDEN), jrnn.GRU(HIDDEN, reset_after=False)
RELU, UGRNN = jrnn.Elman(HIDDEN, activation="relu"), jrnn.UGRNN(HIDDEN)

CASES = {
    "nnx-LSTMCell": LibraryCase(LSTM, partial(run_nnx, "LSTMCell"), nnx_lstm),
    "nnx-OptimizedLSTMCell": LibraryCase(
        LSTM, partial(run_nnx, "OptimizedLSTMCell"), nnx_optimized_lstm
    ),
    "nnx-SimpleCell": LibraryCase(ELMAN, partial(run_nnx, "SimpleCell"), nnx_concatenated),
    "nnx-GRUCell": LibraryCase(GRU, partial(run_nnx, "GRUCell"), nnx_concatenated, ("b_hn",)),
    "linen-GRUCell": LibraryCase(GRU, partial(run_linen, "GRUCell", HIDDEN), linen_gru),
    "linen-MGUCell-without-reset": LibraryCase(
        UGRNN,
        partial(run_linen, "MGUCell", HIDDEN, reset_gate=False),
        partial(linen_separate, ours="zn", theirs="fn"),
    ),
    "haiku-LSTM": LibraryCase(LSTM, partial(run_haiku, "LSTM", HIDDEN), haiku_lstm),
    "haiku-GRU": LibraryCase(GRU_BEFORE, partial(run_haiku, "GRU", HIDDEN), haiku_gru),
    "haiku-VanillaRNN": LibraryCase(RELU, partial(run_haiku, "VanillaRNN", HIDDEN), haiku_elman),
    "equinox-LSTMCell": LibraryCase(LSTM, partial(run_equinox, "LSTMCell"), equinox_lstm),
    "equinox-GRUCell": LibraryCase(GRU, partial(run_equinox, "GRUCell"), equinox_gru),
}

KERAS = {
    "LSTM": LibraryCase(LSTM, partial(run_keras, "LSTM", HIDDEN), keras_concatenated),
    "GRU": LibraryCase(GRU, partial(run_keras, "GRU", HIDDEN), keras_gru),
    "GRU-reset-before": LibraryCase(
        GRU_BEFORE, partial(run_keras, "GRU", HIDDEN, reset_after=False), keras_gru
    ),
    "SimpleRNN": LibraryCase(ELMAN, partial(run_keras, "SimpleRNN", HIDDEN), keras_concatenated),
}
CASES |= {f"keras-{name}": case for name, case in KERAS.items()}

SAME: Any = {"padding": "same", "recurrent_activation": "sigmoid"}


def conv_lstm_cases(spatial_shape: tuple[int, ...]) -> dict[str, LibraryCase]:
    """Returns the cases of ConvLSTM for a spatial shape."""
    axes, cell = len(spatial_shape), jrnn.ConvLSTM(HIDDEN, spatial_shape=spatial_shape)
    make_linen = partial(run_linen, "ConvLSTMCell", HIDDEN, (3,) * axes)
    make_haiku = partial(run_haiku, f"Conv{axes}DLSTM", spatial_shape, HIDDEN, 3)
    make_keras = partial(
        run_keras, f"ConvLSTM{axes}D", HIDDEN, 3, spatial_shape=spatial_shape, **SAME
    )
    return {
        f"linen-ConvLSTMCell-{axes}d": LibraryCase(cell, make_linen, linen_convolutions),
        f"haiku-Conv{axes}DLSTM": LibraryCase(cell, make_haiku, haiku_convolutions),
        f"keras-ConvLSTM{axes}D": LibraryCase(cell, make_keras, keras_concatenated),
    }


for spatial_shape in ((6,), (4, 5), (3, 2, 4)):
    CASES |= conv_lstm_cases(spatial_shape)


def compare(case: LibraryCase, library_run: Run, masked: bool = False) -> None:
    """Compares final carry, outputs, and gradients of parameters, inputs and initial carry.

    With `masked`, sequences have different lengths, which the library gets as a mask.
    """
    params = random_params(case.cell, 1, INPUT, np.float32)
    batch = random_batch(case.cell, params, 2, STEPS, BATCH, np.float32)
    lengths = batch.lengths if masked else None
    mask = np.arange(STEPS) < batch.lengths[:, None] if masked else None
    zero_missing = lambda p: p._replace(**{name: 0 * getattr(p, name) for name in case.missing})

    def run_ours(p: Any, xs: Any, carry: Any) -> Any:
        return jrnn.unroll(case.cell, zero_missing(p), xs, carry, lengths=lengths)

    def run_library(p: Any, xs: Any, carry: Any) -> Any:
        states, structure = jax.tree.flatten(carry)
        last, ys = library_run(case.weights(zero_missing(p)), states, xs, mask)
        return jax.tree.unflatten(structure, last), ys

    def run_and_differentiate(run: Callable[..., Any]) -> Any:
        results, vjp = jax.vjp(run, params, batch.xs, batch.carry)
        return results, vjp((batch.ct_carry, batch.ct_ys))

    got, expected = (
        jax.jit(partial(run_and_differentiate, run))() for run in (run_ours, run_library)
    )
    assert_close(got, expected, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_cell_equals_the_library(name: str) -> None:
    compare(CASES[name], CASES[name].make())


# The mask of keras does not broadcast over spatial axes, so ConvLSTM is excluded.
@pytest.mark.parametrize("name", KERAS)
def test_cell_with_lengths_equals_keras_with_a_mask(name: str) -> None:
    make: Any = KERAS[name].make
    compare(KERAS[name], make(zero_output_for_mask=True), masked=True)
