"""Pictures of an `GateCapture`: its gates, its cell state, one unit, and what is forgotten when.

Each function returns a matplotlib `Figure` made without pyplot, so nothing is kept behind the
scenes and no display is needed: save it by `figure.savefig(...)`, or let it be the last line of a
notebook cell (after `%matplotlib inline`).
"""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from jrnn import checks
from jrnn.analysis.capture import GateCapture, retention
from jrnn.analysis.panels import (
    MOST_LABELS,
    Beneath,
    by_time,
    finish,
    heat,
    height,
    label_units,
    lines,
    panels_of,
    root,
    scale_of,
)
from jrnn.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"i": "tab:green", "f": "tab:red", "g": "tab:orange", "o": "tab:blue"}


def plot_gates(
    capture: GateCapture,
    example: int = 0,
    *,
    gates: Sequence[str] | None = None,
    inputs: str | Sequence[str] | Any = None,
    sort_by: str | None = None,
) -> "Figure":
    """A heat map of every gate of one sequence: units down, time across.

    Gates that are never negative are on one scale from 0 (shut) to 1 (open), the others on one from
    -1 to 1 that is white at 0; a gate beyond 1, such as a relu, stretches its own scale. Padding is
    cut off, and a dashed line is drawn where the carry was reset.

    Args:
      capture: what `jrnn.analysis.capture_gates` returned.
      example: which sequence of the batch.
      gates: which gates, in this order; by default all.
      inputs: what to show below the axis of time: T characters or words, or an array
        `[T, features]`.
      sort_by: a gate; units are put, in every heat map alike, in the order of the step at which
        this gate is furthest from its own mean over time. By default in the order of their number.

    Returns:
      The figure: one axes for each gate, and one for `inputs` where it is an array.

    Raises:
      TypeError: `capture` is not one.
      ValueError: it holds no gates, a gate is unknown, `example` is outside of the batch, or
        `inputs` does not fit.
      ImportError: matplotlib is missing.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> seen = jrnn.analysis.capture_gates(cell, params, jnp.ones((5, 2, 3)))
    >>> figure = plot_gates(seen, gates=("f", "i"), inputs="hello")
    >>> [axes.get_ylabel() for axes in figure.axes[:2]]
    ['f', 'i']
    """
    owner = "plot_gates"
    steps = _steps(owner, capture, example)
    shown = {name: _gate(owner, capture, name) for name in _names(owner, capture, gates)}
    order = None
    if sort_by is not None:
        order = by_time(_gate(owner, capture, sort_by)[:steps, example])
    beneath = _inputs(owner, inputs, len(capture.ys), steps)

    heights = [height(values.shape[-1]) for values in shown.values()]
    figure, panels, strip = panels_of(heights, beneath)
    for panel, (name, values) in zip(panels, shown.items(), strict=True):
        units = values.shape[-1]
        rows = np.arange(units) if order is None or len(order) != units else order
        heat(panel, values[:steps, example, rows].T, scale_of(values))
        panel.set_ylabel(name, rotation=0, fontsize="large", labelpad=14)
        label_units(panel, rows)
    finish(panels, strip, steps, beneath, _breaks(capture, example, steps))
    return figure


def plot_cell_state(
    capture: GateCapture,
    example: int = 0,
    *,
    state: str | None = None,
    units: int | Sequence[int] = 4,
    inputs: str | Sequence[str] | Any = None,
) -> "Figure":
    """The cell state running along: a heat map of all units, and lines of a few of them.

    Args:
      capture: what `jrnn.analysis.capture_gates` returned.
      example: which sequence of the batch.
      state: which array of the carry, such as "c" or "h"; by default "c" where there is one, or
        the only one.
      units: which units have a line; or how many, those that change most over time.
      inputs: what to show below the axis of time: T characters or words, or an array
        `[T, features]`.

    Returns:
      The figure, whose first axes is the heat map and whose second one holds the lines.

    Raises:
      TypeError: `capture` is not one.
      ValueError: `state`, `example` or a unit is unknown, or `inputs` does not fit.
      ImportError: matplotlib is missing.
    """
    owner = "plot_cell_state"
    steps = _steps(owner, capture, example)
    name, values = _state(owner, capture, state)
    values = values[:steps, example]
    beneath = _inputs(owner, inputs, len(capture.ys), steps)
    if isinstance(units, Sequence):
        chosen = [_index(owner, "unit", unit, values.shape[-1]) for unit in units]
    else:
        checks.positive_int(owner, "units", units)
        chosen = np.argsort(-values.var(axis=0), kind="stable")[:units].tolist()

    figure, (above, below), strip = panels_of([height(values.shape[-1]), 1.8], beneath)
    limit = float(np.nanmax(np.abs(values), initial=1e-6))
    heat(above, values.T, (-limit, limit, "RdBu_r"))
    above.set_ylabel(name, rotation=0, fontsize="large", labelpad=14)
    label_units(above, np.arange(values.shape[-1]))
    for unit in chosen:
        below.plot(values[:, unit], drawstyle="steps-mid", label=f"{name}[{unit}]")
    lines(below)
    finish([above, below], strip, steps, beneath, _breaks(capture, example, steps))
    return figure


def plot_unit(
    capture: GateCapture,
    unit: int,
    example: int = 0,
    *,
    gates: Sequence[str] | None = None,
    state: str | None = None,
    inputs: str | Sequence[str] | Any = None,
) -> "Figure":
    """The life of one unit: its gates as lines, and below them its state.

    Args:
      capture: what `jrnn.analysis.capture_gates` returned.
      unit: which unit.
      example: which sequence of the batch.
      gates: which gates; by default all.
      state: which array of the carry, such as "c" or "h"; by default "c" where there is one, or
        the only one.
      inputs: what to show below the axis of time: T characters or words, or an array
        `[T, features]`.

    Returns:
      The figure, whose first axes holds the gates and whose second one the state.

    Raises:
      TypeError: `capture` is not one.
      ValueError: a gate, `state`, `example` or `unit` is unknown, or `inputs` does not fit.
      ImportError: matplotlib is missing.
    """
    owner = "plot_unit"
    steps = _steps(owner, capture, example)
    name, values = _state(owner, capture, state)
    unit = _index(owner, "unit", unit, values.shape[-1])
    values = values[:steps, example, unit]
    beneath = _inputs(owner, inputs, len(capture.ys), steps)

    figure, (above, below), strip = panels_of([2.2, 1.3], beneath)
    for gate in _names(owner, capture, gates):
        line = _gate(owner, capture, gate)
        _index(owner, f"unit of gate {gate!r}", unit, line.shape[-1])
        above.plot(
            line[:steps, example, unit], drawstyle="steps-mid", label=gate, color=COLOURS.get(gate)
        )
    lines(above)
    above.set_ylabel(f"gates of\nunit {unit}")
    below.fill_between(np.arange(steps), values, step="mid", color="0.8")
    below.plot(values, drawstyle="steps-mid", color="black", label=f"{name}[{unit}]")
    lines(below)
    finish([above, below], strip, steps, beneath, _breaks(capture, example, steps))
    return figure


def plot_forgetting(
    capture: GateCapture,
    example: int = 0,
    *,
    keep: str = "f",
    unit: int | None = None,
    inputs: str | Sequence[str] | Any = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """What is forgotten and when: the share of the state of step s that is left at step t.

    ::

        kept[s, t] = f[s+1] * ... * f[t],   a row for each s, a column for each t

    A row that stays bright is a memory that lasts; a column at which all rows go dark is a step
    that forgets everything. See `retention`.

    Args:
      capture: what `jrnn.analysis.capture_gates` returned.
      example: which sequence of the batch.
      keep: the gate that keeps the old state: "f" of an LSTM, "z" of a GRU.
      unit: one unit; by default the mean over all of them.
      inputs: T characters or words, shown along both axes.
      ax: the axes to draw into; by default those of a new figure.

    Returns:
      The figure.

    Raises:
      TypeError: `capture` is not one.
      ValueError: `keep`, `example` or `unit` is unknown, `keep` is not between 0 and 1, or `inputs`
        does not fit.
      ImportError: matplotlib is missing.
    """
    owner = "plot_forgetting"
    steps = _steps(owner, capture, example)
    forget = _gate(owner, capture, keep)[:steps, example]
    if forget.min(initial=0.0) < 0 or forget.max(initial=1.0) > 1:
        raise ValueError(f"{owner}: gate {keep!r} must be between 0 and 1 to keep a share")
    if unit is not None:
        forget = forget[:, [_index(owner, "unit", unit, forget.shape[-1])]]
    labels = _inputs(owner, inputs, len(capture.ys), steps)
    if isinstance(labels, np.ndarray):
        raise ValueError(f"{owner}: inputs must be characters or words, one for each step")
    resets = None if capture.resets is None else capture.resets[:steps, example]
    reverse = bool(capture.reverse)
    kept = np.asarray(retention(jnp.asarray(forget), resets, reverse=reverse)).mean(axis=-1)
    s, t = np.arange(steps)[:, None], np.arange(steps)
    kept[s < t if reverse else s > t] = np.nan  # drawn as nothing: it was not there yet

    if ax is None:
        ax = new_figure(6.0, 5.2).add_subplot()
    image = heat(ax, kept, (0.0, 1.0, "viridis"), bar=False)
    ax.set_aspect("equal")
    whose = "mean of all units" if unit is None else f"unit {unit}"
    ax.figure.colorbar(image, ax=ax, label=f"share left, by {keep} ({whose})")
    ax.set_xlabel("left at step t")
    ax.set_ylabel("there at step s")
    if labels is not None and steps <= MOST_LABELS:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(np.arange(steps), labels, fontsize="small", family="monospace")
            axis.set_tick_params(length=0)
    return root(ax)


def _steps(owner: str, capture: GateCapture, example: int) -> int:
    """The number of valid steps of one example."""
    if not isinstance(capture, GateCapture):
        raise TypeError(
            f"{owner}: expected what jrnn.analysis.capture_gates(cell, params, xs) returns, "
            f"got {type(capture).__name__}"
        )
    time, batch = capture.ys.shape[:2]
    example = _index(owner, "example", example, batch)
    steps = time
    if capture.lengths is not None:
        steps = int(np.clip(np.asarray(capture.lengths)[example], 0, time))
    if steps == 0:
        raise ValueError(f"{owner}: example {example} has no steps to show")
    return steps


def _index(owner: str, name: str, value: Any, size: int) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner}: {name} must be an int, got {value!r}") from None
    if not 0 <= index < size:
        raise ValueError(f"{owner}: {name} must be from 0 to {size - 1}, got {index}")
    return index


def _names(owner: str, capture: GateCapture, gates: Sequence[str] | None) -> Sequence[str]:
    if not capture.gates:
        raise ValueError(
            f"{owner}: the cell names no gates; call jrnn.record(f=f, ...) in its update, or use "
            "plot_cell_state"
        )
    if gates is None:
        return list(capture.gates)
    if isinstance(gates, str) or not gates:
        raise ValueError(
            f"{owner}: gates must be a list of names such as ['f', 'i'], got {gates!r}"
        )
    return gates


def _gate(owner: str, capture: GateCapture, name: str) -> np.ndarray:
    checks.one_of(owner, "a gate", name, _names(owner, capture, None))
    return _drawable(owner, f"gate {name!r}", capture.gates[name])


def _state(owner: str, capture: GateCapture, state: str | None) -> tuple[str, np.ndarray]:
    """The name and the values of one array of the carry."""
    paths = jax.tree.leaves_with_path(capture.carries)
    # A carry that is one array has no name of its own; here it is h, as everywhere in jrnn.
    leaves = {keystr(path, simple=True, separator=".") or "h": leaf for path, leaf in paths}
    if state is None:
        state = "c" if "c" in leaves else next(iter(leaves)) if len(leaves) == 1 else None
    if state not in leaves:
        raise ValueError(
            f"{owner}: state must be one of the arrays of the carry, "
            f"{', '.join(map(repr, leaves))}, got {state!r}"
        )
    return state, _drawable(owner, f"state {state!r}", leaves[state])


def _drawable(owner: str, what: str, array: jax.Array) -> np.ndarray:
    if array.ndim != 3:
        raise ValueError(
            f"{owner}: {what} must have shape (time, batch, hidden), got {array.shape}; of several "
            "stacked by vmap take one: jax.tree.map(lambda a: a[0], capture)"
        )
    return np.asarray(array).astype(np.float64)


def _breaks(capture: GateCapture, example: int, steps: int) -> np.ndarray:
    """Where between two steps the carry was reset, on the axis of time."""
    if capture.resets is None:
        return np.zeros(0)
    return np.flatnonzero(capture.resets[:steps, example]) + (0.5 if capture.reverse else -0.5)


def _inputs(owner: str, inputs: Any, time: int, steps: int) -> Beneath:
    """The labels or features of the steps shown: `inputs` may cover all T steps or these alone."""
    if inputs is None:
        return None
    if isinstance(inputs, str) or (
        isinstance(inputs, Sequence) and all(isinstance(item, str) for item in inputs)
    ):
        shown = list(inputs)
    else:
        shown = np.asarray(inputs).astype(np.float64)
        if shown.ndim != 2:
            raise ValueError(
                f"{owner}: inputs must be characters, words, or an array (time, features), "
                f"got shape {shown.shape}"
            )
    if len(shown) not in (time, steps):
        raise ValueError(
            f"{owner}: inputs must have one entry for each of the {time} steps, got {len(shown)}"
        )
    return shown[:steps]
