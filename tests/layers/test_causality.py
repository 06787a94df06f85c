"""Causality of layers, and errors of functions that require a causal layer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import GRU, LSTM, Layer, MinGRU, bidirectional, stack
from jrnn.nn import RNN, SequenceToSequence, StackedRNN, generate
from jrnn.tasks import Table, Text
from jrnn.train import TBPTT, Experiment, Network, Optimizer, check_experiment
from jrnn.transforms import dropout, highway, layer_norm, learned_carry, residual, zoneout
from tests.helpers import random_params
from tests.table import Row

STEPS, SIZE = 4, 3

CAUSAL: dict[str, Layer] = {
    "stack": stack([LSTM(4), GRU(SIZE)]),
    "nested": stack([stack([LSTM(4)]), stack([GRU(SIZE), MinGRU(4)])]),
    "depth-gated": stack([LSTM(SIZE), jrnn.DepthGatedLSTM(SIZE)]),
    "transformed": stack([zoneout(layer_norm(LSTM(SIZE)), h=0.2), highway(dropout(GRU(SIZE)))]),
    "learned": stack([residual(learned_carry(GRU(SIZE)))]),
}
NOT_CAUSAL: dict[str, Layer] = {
    "concat": bidirectional(GRU(4)),
    "sum": bidirectional(GRU(4), merge="sum"),
    "mul": bidirectional(GRU(4), merge="mul"),
    "ave": bidirectional(LSTM(4), GRU(4), merge="ave"),
    "lowest": stack([bidirectional(GRU(4)), GRU(4)]),
    "lowest-sum": stack([bidirectional(GRU(4), merge="sum"), GRU(4)]),
    "middle": stack([GRU(4), bidirectional(LSTM(4), merge="sum"), GRU(4)]),
    "highest": stack([GRU(4), bidirectional(GRU(4), merge="ave")]),
    "nested": stack([stack([bidirectional(GRU(4)), GRU(4)]), GRU(4)]),
    "of-stacks": bidirectional(stack([GRU(4), GRU(4)]), merge="sum"),
}


def find_noncausal_steps(layer: Layer, seed: int = 1) -> np.ndarray:
    """Returns `[T]` bool: whether the inputs from step t on affect an output before step t."""
    params = random_params(layer, seed, SIZE, np.float32)
    rng = np.random.default_rng(seed)
    like = layer.inputs(SIZE, (STEPS, STEPS))
    draw = lambda leaf: rng.normal(size=leaf.shape[:1] + (1, *leaf.shape[2:])).astype(np.float32)
    one, other = (jax.tree.map(draw, like) for _ in range(2))
    # In sequence b of the batch the inputs differ from step b on.
    later = np.arange(STEPS)[:, None] >= np.arange(STEPS)
    mix = lambda a, b: np.where(later.reshape(later.shape + (1,) * (a.ndim - 2)), b, a)
    xs = jax.tree.map(mix, one, other)
    ys = np.asarray(jrnn.unroll(layer, params, xs, engine="scan")[1])
    unchanged = jax.tree.map(lambda a: np.broadcast_to(a, (STEPS, STEPS, *a.shape[2:])), one)
    reference = np.asarray(jrnn.unroll(layer, params, unchanged, engine="scan")[1])
    assert (ys != reference).any(), "the inputs affect no output"
    differ = (ys != reference).reshape(STEPS, STEPS, -1).any(axis=-1)
    return (differ & ~later).any(axis=0)


def test_cells_do_not_depend_on_future_inputs(kind_or_row: Row) -> None:
    cell = kind_or_row.make(SIZE)
    assert cell.causal
    assert not find_noncausal_steps(cell).any()


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_layers_do_not_depend_on_future_inputs(name: str) -> None:
    assert CAUSAL[name].causal
    assert not find_noncausal_steps(CAUSAL[name]).any()


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_noncausal_layers_depend_on_future_inputs(name: str) -> None:
    assert not NOT_CAUSAL[name].causal
    assert find_noncausal_steps(NOT_CAUSAL[name])[1:].all()


def test_causal_and_apply_of_cells_are_final() -> None:
    # A subclass of `Cell` must not mix steps.
    members: Any = vars(jrnn.Cell)
    assert members["causal"].fget.__final__ and members["apply"].__final__


# --- functions that require a causal layer -------------------------------------------------------


@pytest.fixture(params=NOT_CAUSAL)
def noncausal(request: pytest.FixtureRequest) -> Layer:
    """Each layer that is not causal."""
    return NOT_CAUSAL[request.param]


def test_modules_report_causality(noncausal: Layer) -> None:
    rngs = nnx.Rngs(0)
    assert not RNN(noncausal, SIZE, rngs=rngs).causal
    assert not StackedRNN(noncausal, SIZE, rngs=rngs).causal
    assert not Network(noncausal).causal
    assert RNN(GRU(4), SIZE, rngs=rngs).causal and Network(stack([GRU(4), GRU(4)])).causal
    assert not RNN(GRU(4), SIZE, rngs=rngs, reverse=True).causal
    assert not StackedRNN(GRU(4), SIZE, rngs=rngs, bidirectional=True).causal
    assert not Network(GRU(4), bidirectional=True).causal


def test_streaming_and_generation_raise_for_noncausal_layers(noncausal: Layer) -> None:
    rngs = nnx.Rngs(0)
    for body in (RNN(noncausal, SIZE, rngs=rngs), StackedRNN(noncausal, SIZE, rngs=rngs)):
        with pytest.raises(ValueError, match="stream: model must be causal"):
            jrnn.stream(body)
        model = SequenceToSequence(body, 5, embedding=nnx.Embed(5, SIZE, rngs=rngs), rngs=rngs)
        with pytest.raises(ValueError, match="stream: model must be causal"):
            jrnn.stream(model)
        with pytest.raises(ValueError, match="generate: model.body must be batch-major and causal"):
            generate(model, jnp.zeros((1, 2), int), 3, key=jax.random.key(0))


def test_stream_of_a_causal_stack_equals_a_call() -> None:
    model = RNN(CAUSAL["transformed"], SIZE, rngs=nnx.Rngs(0))
    model.eval()
    xs = np.random.default_rng(0).normal(size=(2, STEPS, SIZE)).astype(np.float32)
    stream = jrnn.stream(model, batch_size=2)
    ys = np.stack([stream.step(xs[:, t]) for t in range(STEPS)], axis=1)
    np.testing.assert_allclose(ys, model(xs)[1], rtol=1e-5, atol=1e-6)


def text_task(folder: Path) -> Text:
    """Returns a task that predicts the next character of a text."""
    path = folder / "story.txt"
    path.write_text("the cat sat on the mat and the dog ran " * 20)
    return Text(str(path), window=8)


def table_task(folder: Path) -> Table:
    """Returns a task that predicts the next row of a table."""
    path = folder / "load.csv"
    path.write_text("load\n" + "".join(f"{(3 * n) % 11}\n" for n in range(200)))
    return Table(str(path), window=8)


@pytest.mark.parametrize("task", [text_task, table_task])
def test_tasks_that_predict_their_inputs_raise_for_noncausal_layers(
    task: Any, tmp_path: Path
) -> None:
    data = task(tmp_path).load()
    for layer in NOT_CAUSAL.values():
        with pytest.raises(ValueError, match="Network: this task needs a causal network"):
            Network(layer).build(data, 0)
    assert isinstance(Network(CAUSAL["stack"]).build(data, 0), SequenceToSequence)


def test_tbptt_raises_for_noncausal_layers(tmp_path: Path) -> None:
    task = table_task(tmp_path)
    data = replace(task.load(), causal=False)  # the task itself would allow any network
    options: Any = {"steps": 4, "batch_size": 2, "eval_every": 2, "tbptt": TBPTT(4)}
    for name in ("sum", "lowest"):
        with pytest.raises(ValueError, match="TBPTT: the network must be causal"):
            check_experiment(
                Experiment(task, Network(NOT_CAUSAL[name]), Optimizer(1e-2), **options), data
            )
    check_experiment(Experiment(task, Network(CAUSAL["stack"]), Optimizer(1e-2), **options), data)
