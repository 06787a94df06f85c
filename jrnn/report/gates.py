"""Heat maps of the gates and carries of chosen examples over time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrnn.analysis import capture_gates
from jrnn.dtypes import cast
from jrnn.nn.layers import StackedRNN
from jrnn.nn.rnn import swap_time_and_batch
from jrnn.report.charts import heat_map
from jrnn.report.page import Child, Page, grid
from jrnn.tasks.task import Split

MAX_UNITS = 64
"""Maximum number of hidden units of a heat map; the first ones are shown."""
MAX_STEPS = 256
"""Maximum number of steps of a heat map; the first ones are shown."""
MAX_MAPS = 16
"""Maximum number of heat maps of an example; those of the first layers are shown."""


class Trace(NamedTuple):
    """A gate or a part of the carry.

    Attributes:
      name: such as "gate f", or "layer 1, reverse: gate f" in a network of several layers.
      values: `[T, N, hidden]`, real.
    """

    name: str
    values: np.ndarray


def capture_traces(model: Any, examples: Split) -> list[Trace]:
    """Returns all gates and carries of a network for N examples, without dropout.

    A part of a carry that has other axes than `[T, N, hidden]`, such as a matrix, is left out. A
    complex part is represented by its absolute values.

    Of a causal network, only the first `MAX_STEPS` steps are returned.

    Args:
      model: a `Classifier` or `SequenceToSequence` from `Network.build`.
      examples: the examples, as for the network.
    """
    body: StackedRNN = model.body
    if body.causal:  # later steps do not change those that are shown
        examples = _limit_steps(examples)
    xs = jnp.asarray(examples.xs)
    inputs = xs if model.embedding is None else model.embedding(xs)
    lengths = None if examples.lengths is None else jnp.asarray(examples.lengths)
    resets = None if examples.resets is None else jnp.asarray(examples.resets).T
    traces: list[Trace] = []

    def run(index: int, inputs: Any, resets: Any) -> jax.Array:
        rnn = body.rnns[index]
        xs = inputs if rnn.dtype is None else cast(inputs, jnp.dtype(rnn.dtype))
        capture = capture_gates(
            rnn.cell, rnn.params, xs, lengths=lengths, resets=resets, reverse=rnn.reverse
        )
        prefix = _describe_rnn(body, index)
        gates = [(f"gate {name}", gate) for name, gate in capture.gates.items()]
        traces.extend(
            Trace(f"{prefix}: {name}" if prefix else name, _to_real(value))
            for name, value in [*gates, *_name_leaves(capture.carries)]
            if np.ndim(value) == 3
        )
        return capture.ys

    body.run_layers(run, swap_time_and_batch(inputs), lengths=lengths, resets=resets)
    return traces


def _describe_rnn(body: StackedRNN, index: int) -> str:
    """Returns the layer and the direction of `body.rnns[index]`, as far as there are several."""
    layer, direction = divmod(index, len(body.directions))
    parts = [f"layer {layer + 1}"] if body.num_layers > 1 else []
    if len(body.directions) > 1:
        parts.append("reverse" if body.directions[direction] else "forward")
    return ", ".join(parts)


def _limit_steps(examples: Split) -> Split:
    """Returns the inputs of the first `MAX_STEPS` steps."""
    cut = lambda array: None if array is None else array[:, :MAX_STEPS]
    lengths = None if examples.lengths is None else np.minimum(examples.lengths, MAX_STEPS)
    return Split(examples.xs[:, :MAX_STEPS], examples.ys, lengths, resets=cut(examples.resets))


def _name_leaves(carries: Any) -> list[tuple[str, Any]]:
    """Returns the parts of a carry with their names; a single array has the name "h"."""
    leaves = jax.tree_util.tree_leaves_with_path(carries)
    name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return [(f"carry {name_of(path)}" if path else "carry h", leaf) for path, leaf in leaves]


def _to_real(values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind == "c":
        values = np.abs(values)
    return values.astype(np.float32)


def gate_figures(page: Page, traces: list[Trace], example: int, length: int) -> list[Child]:
    """Makes a heat map of each gate and carry of one example.

    Args:
      page: the page.
      traces: from `capture_traces`.
      example: index of the example among the N examples of `traces`.
      length: number of its valid steps.

    Returns:
      A grid of figures, and a text on what is left out.
    """
    figures = []
    for trace in traces[:MAX_MAPS]:
        values = trace.values[:length, example][:MAX_STEPS, :MAX_UNITS].T
        bounds = _bounds(values)
        chart = heat_map(values, "step", "unit", low=bounds[0], high=bounds[1])
        figures.append(page.chart(trace.name, chart))
    hidden = max((trace.values.shape[2] for trace in traces), default=0)
    omitted = [
        text
        for condition, text in (
            (length > MAX_STEPS, f"steps after the first {MAX_STEPS} of {length}"),
            (hidden > MAX_UNITS, f"units after the first {MAX_UNITS} of {hidden}"),
            (len(traces) > MAX_MAPS, f"{len(traces) - MAX_MAPS} of {len(traces)} heat maps"),
        )
        if condition
    ]
    return [grid(*figures), f"Left out: {'; '.join(omitted)}." if omitted else None]


def _bounds(values: np.ndarray) -> tuple[float | None, float | None]:
    """Returns 0 and 1 for values of a sigmoid, so that heat maps of gates are comparable."""
    if values.size and 0 <= values.min() and values.max() <= 1:
        return 0.0, 1.0
    return None, None
