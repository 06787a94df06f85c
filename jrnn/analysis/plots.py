"""Figures of a `GateCapture`: gates, cell state, a single unit, and retention.

Each function returns a matplotlib `Figure` that pyplot does not manage, so no display is needed and
no figure needs to be closed. Save it with `figure.savefig(...)`, or make it the last expression of
a notebook cell (after `%matplotlib inline`).
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
    MAX_LABELS,
    Annotation,
    color_scale,
    draw_heatmap,
    draw_time_axis,
    format_line_plot,
    heatmap_height,
    label_units,
    make_panels,
    order_by_peak,
    root_figure,
)
from jrnn.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"i": "tab:green", "f": "tab:red", "g": "tab:orange", "o": "tab:blue"}
"""The colors of the gates of an LSTM in `plot_unit`."""


def plot_gates(
    capture: GateCapture,
    example: int = 0,
    *,
    gates: Sequence[str] | None = None,
    inputs: str | Sequence[str] | Any = None,
    sort_by: str | None = None,
) -> "Figure":
    """Plots a heat map of each gate of one sequence, with units as rows and steps as columns.

    The color scale of a gate without negative values is from 0 (closed) to 1 (open). The scale of
    other gates is from -1 to 1 and white at 0. If an absolute value exceeds 1, as with relu, the
    scale extends to it. Steps after the length of the sequence are not shown; on steps that `mask`
    excludes, gates are 0. A dashed line marks each reset of the carry.

    Args:
      capture: the result of `jrnn.analysis.capture_gates`.
      example: index of the sequence in the batch.
      gates: names of gates, in the order of the panels; by default all.
      inputs: annotation of the time axis: T characters or words, which are shown for at most 72
        steps, or an array `[T, features]`. Steps after the length of the sequence may be omitted.
      sort_by: name of a gate; the rows of all heat maps with the same number of units are sorted by
        the step at which this gate is furthest from its mean over time. By default units are in the
        order of their indices.

    Returns:
      The figure, with one axes for each gate, and one for `inputs` if it is an array.

    Raises:
      TypeError: `capture` is not a `GateCapture`, or an index is not an int.
      ValueError: there are no gates, a gate is unknown or not `[T, B, hidden]`, `example` is out of
        range or has no valid step, or `inputs` has a wrong shape.
      ImportError: matplotlib is not installed.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = jrnn.LSTM(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> capture = jrnn.analysis.capture_gates(cell, params, jnp.ones((5, 2, 3)))
    >>> figure = plot_gates(capture, gates=("f", "i"), inputs="hello")
    >>> [axes.get_ylabel() for axes in figure.axes[:2]]
    ['f', 'i']
    """
    owner = "plot_gates"
    steps = _valid_steps(owner, capture, example)
    values_of = {name: _gate(owner, capture, name) for name in _gate_names(owner, capture, gates)}
    order = None
    if sort_by is not None:
        order = order_by_peak(_gate(owner, capture, sort_by)[:steps, example])
    annotation = _annotation(owner, inputs, len(capture.ys), steps)

    heights = [heatmap_height(values.shape[-1]) for values in values_of.values()]
    figure, panels, feature_axes = make_panels(heights, annotation)
    for panel, (name, values) in zip(panels, values_of.items(), strict=True):
        units = values.shape[-1]
        rows = np.arange(units) if order is None or len(order) != units else order
        draw_heatmap(panel, values[:steps, example, rows].T, color_scale(values))
        panel.set_ylabel(name, rotation=0, fontsize="large", labelpad=14)
        label_units(panel, rows)
    draw_time_axis(
        panels, feature_axes, steps, annotation, _reset_positions(capture, example, steps)
    )
    return figure


def plot_cell_state(
    capture: GateCapture,
    example: int = 0,
    *,
    state: str | None = None,
    units: int | Sequence[int] = 4,
    inputs: str | Sequence[str] | Any = None,
) -> "Figure":
    """Plots a state over time, with a heat map of all units and lines for some of them.

    Args:
      capture: the result of `jrnn.analysis.capture_gates`.
      example: index of the sequence in the batch.
      state: name of an array of the carry, such as "c"; a carry that is a single array has the name
        "h". By default "c", or the only array.
      units: indices of the units to draw as lines, or a number of units: then those with the
        largest variance over time are drawn.
      inputs: annotation of the time axis: T characters or words, which are shown for at most 72
        steps, or an array `[T, features]`. Steps after the length of the sequence may be omitted.

    Returns:
      The figure, whose first axes has the heat map and whose second one has the lines.

    Raises:
      TypeError: `capture` is not a `GateCapture`, or an index is not an int.
      ValueError: `state` is unknown or not `[T, B, hidden]`, `units` is not a positive int, a unit
        or `example` is out of range, `example` has no valid step, or `inputs` has a wrong shape.
      ImportError: matplotlib is not installed.
    """
    owner = "plot_cell_state"
    steps = _valid_steps(owner, capture, example)
    name, values = _state(owner, capture, state)
    values = values[:steps, example]
    annotation = _annotation(owner, inputs, len(capture.ys), steps)
    if isinstance(units, Sequence):
        selected = [_index(owner, "unit", unit, values.shape[-1]) for unit in units]
    else:
        checks.positive_int(owner, "units", units)
        selected = np.argsort(-values.var(axis=0), kind="stable")[:units].tolist()

    figure, panels, feature_axes = make_panels([heatmap_height(values.shape[-1]), 1.8], annotation)
    heatmap_axes, line_axes = panels
    limit = float(np.nanmax(np.abs(values), initial=1e-6))
    draw_heatmap(heatmap_axes, values.T, (-limit, limit, "RdBu_r"))
    heatmap_axes.set_ylabel(name, rotation=0, fontsize="large", labelpad=14)
    label_units(heatmap_axes, np.arange(values.shape[-1]))
    for unit in selected:
        line_axes.plot(values[:, unit], drawstyle="steps-mid", label=f"{name}[{unit}]")
    format_line_plot(line_axes)
    draw_time_axis(
        panels, feature_axes, steps, annotation, _reset_positions(capture, example, steps)
    )
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
    """Plots the gates and the state of one unit over time.

    Args:
      capture: the result of `jrnn.analysis.capture_gates`.
      unit: index of the unit.
      example: index of the sequence in the batch.
      gates: names of gates; by default all.
      state: name of an array of the carry, such as "c"; a carry that is a single array has the name
        "h". By default "c", or the only array.
      inputs: annotation of the time axis: T characters or words, which are shown for at most 72
        steps, or an array `[T, features]`. Steps after the length of the sequence may be omitted.

    Returns:
      The figure, whose first axes has the gates and whose second one the state.

    Raises:
      TypeError: `capture` is not a `GateCapture`, or an index is not an int.
      ValueError: a gate or `state` is unknown or not `[T, B, hidden]`, `example` or `unit` is out
        of range, `example` has no valid step, or `inputs` has a wrong shape.
      ImportError: matplotlib is not installed.
    """
    owner = "plot_unit"
    steps = _valid_steps(owner, capture, example)
    name, values = _state(owner, capture, state)
    unit = _index(owner, "unit", unit, values.shape[-1])
    values = values[:steps, example, unit]
    annotation = _annotation(owner, inputs, len(capture.ys), steps)

    figure, panels, feature_axes = make_panels([2.2, 1.3], annotation)
    gate_axes, state_axes = panels
    for gate in _gate_names(owner, capture, gates):
        gate_values = _gate(owner, capture, gate)
        _index(owner, f"unit of gate {gate!r}", unit, gate_values.shape[-1])
        gate_axes.plot(
            gate_values[:steps, example, unit],
            drawstyle="steps-mid",
            label=gate,
            color=COLORS.get(gate),
        )
    format_line_plot(gate_axes)
    gate_axes.set_ylabel(f"gates of\nunit {unit}")
    state_axes.fill_between(np.arange(steps), values, step="mid", color="0.8")
    state_axes.plot(values, drawstyle="steps-mid", color="black", label=f"{name}[{unit}]")
    format_line_plot(state_axes)
    draw_time_axis(
        panels, feature_axes, steps, annotation, _reset_positions(capture, example, steps)
    )
    return figure


def plot_retention(
    capture: GateCapture,
    example: int = 0,
    *,
    gate: str = "f",
    unit: int | None = None,
    inputs: str | Sequence[str] | Any = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """Plots the fraction of the state of each step s that remains at each later step t.

    ::

        retention[s, t] = f[s+1] * ... * f[t],   a row for each s, a column for each t

    A row that remains bright shows a state that is kept for many steps. A column at which all rows
    become dark shows a step that forgets the state. Steps that `mask` excludes forget nothing. See
    `retention`.

    Args:
      capture: the result of `jrnn.analysis.capture_gates`.
      example: index of the sequence in the batch.
      gate: name of the gate that multiplies the previous state: "f" of an LSTM, "z" of a GRU.
      unit: index of a unit; by default the mean over all units is shown.
      inputs: annotation of both axes: T characters or words, which are shown for at most 72 steps.
        Steps after the length of the sequence may be omitted.
      ax: the axes to draw into; by default those of a new figure.

    Returns:
      The figure that contains `ax`.

    Raises:
      TypeError: `capture` is not a `GateCapture`, or an index is not an int.
      ValueError: `gate` is unknown or not between 0 and 1, `example` or `unit` is out of range,
        `example` has no valid step, `inputs` has the wrong type or length, or `ax` does not belong
        to a figure.
      ImportError: matplotlib is not installed.
    """
    owner = "plot_retention"
    steps = _valid_steps(owner, capture, example)
    forget = _gate(owner, capture, gate)[:steps, example]
    if forget.min(initial=0.0) < 0 or forget.max(initial=1.0) > 1:
        raise ValueError(
            f"{owner}: gate {gate!r} must be between 0 and 1, got values from {forget.min():.3g} "
            f"to {forget.max():.3g}; choose the gate that multiplies the previous state"
        )
    if capture.mask is not None:  # the carry does not change on steps that `mask` excludes
        forget = np.where(np.asarray(capture.mask)[:steps, example, None], forget, 1.0)
    if unit is not None:
        forget = forget[:, [_index(owner, "unit", unit, forget.shape[-1])]]
    labels = _annotation(owner, inputs, len(capture.ys), steps)
    if isinstance(labels, np.ndarray):
        raise ValueError(
            f"{owner}: inputs must be characters or words, got an array of shape {labels.shape}"
        )
    resets = None if capture.resets is None else capture.resets[:steps, example]
    reverse = bool(capture.reverse)
    values = np.asarray(retention(jnp.asarray(forget), resets, reverse=reverse)).mean(axis=-1)
    s, t = np.arange(steps)[:, None], np.arange(steps)
    values[s < t if reverse else s > t] = np.nan  # not drawn

    if ax is None:
        ax = new_figure(6.0, 5.2).add_subplot()
    image = draw_heatmap(ax, values, (0.0, 1.0, "viridis"), colorbar=False)
    ax.set_aspect("equal")
    units = "mean of all units" if unit is None else f"unit {unit}"
    ax.figure.colorbar(image, ax=ax, label=f"retention by {gate} ({units})")
    ax.set_xlabel("step t")
    ax.set_ylabel("step s")
    if labels is not None and steps <= MAX_LABELS:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(np.arange(steps), labels, fontsize="small", family="monospace")
            axis.set_tick_params(length=0)
    return root_figure(ax)


def _valid_steps(owner: str, capture: GateCapture, example: int) -> int:
    """Returns the number of steps to draw: the length of one sequence; raises if it is 0."""
    if not isinstance(capture, GateCapture):
        raise TypeError(
            f"{owner}: capture must be a GateCapture, the result of "
            f"jrnn.analysis.capture_gates(cell, params, xs), got {type(capture).__name__}"
        )
    time, batch = capture.ys.shape[:2]
    example = _index(owner, "example", example, batch)
    steps = time
    if capture.lengths is not None:
        steps = int(np.clip(np.asarray(capture.lengths)[example], 0, time))
    if steps == 0:
        raise ValueError(f"{owner}: example {example} must have at least 1 valid step, got 0")
    return steps


def _index(owner: str, name: str, value: Any, size: int) -> int:
    """Returns the value as an int; raises unless it is from 0 to size - 1."""
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner}: {name} must be an int, got {value!r}") from None
    if not 0 <= index < size:
        raise ValueError(f"{owner}: {name} must be from 0 to {size - 1}, got {index}")
    return index


def _gate_names(owner: str, capture: GateCapture, gates: Sequence[str] | None) -> Sequence[str]:
    """Returns the names of the selected gates; None selects all."""
    if not capture.gates:
        raise ValueError(
            f"{owner}: capture must have at least one gate, but the cell taps none; call "
            "jrnn.tap(name, value) in its update, or use plot_cell_state"
        )
    if gates is None:
        return list(capture.gates)
    if isinstance(gates, str) or not gates:
        raise ValueError(
            f"{owner}: gates must be a list of names such as ['f', 'i'], got {gates!r}"
        )
    return gates


def _gate(owner: str, capture: GateCapture, name: str) -> np.ndarray:
    """Returns the values of a gate `[T, B, hidden]`."""
    checks.one_of(owner, "a gate", name, _gate_names(owner, capture, None))
    return _as_float64(owner, f"gate {name!r}", capture.gates[name])


def _state(owner: str, capture: GateCapture, state: str | None) -> tuple[str, np.ndarray]:
    """Returns the name of one array of the carry, and its values `[T, B, hidden]`."""
    paths = jax.tree.leaves_with_path(capture.carries)
    # The path of a carry that is a single array is empty.
    leaves = {keystr(path, simple=True, separator=".") or "h": leaf for path, leaf in paths}
    if state is None:
        state = "c" if "c" in leaves else next(iter(leaves)) if len(leaves) == 1 else None
    if state not in leaves:
        raise ValueError(
            f"{owner}: state must be one of the arrays of the carry, "
            f"{', '.join(map(repr, leaves))}, got {state!r}"
        )
    return state, _as_float64(owner, f"state {state!r}", leaves[state])


def _as_float64(owner: str, name: str, array: jax.Array) -> np.ndarray:
    """Converts an array `[T, B, hidden]` to NumPy; raises if it does not have three axes."""
    if array.ndim != 3:
        raise ValueError(
            f"{owner}: {name} must have shape (time, batch, hidden), got {array.shape}; if "
            "vmap stacked several captures, select one: jax.tree.map(lambda a: a[0], capture)"
        )
    return np.asarray(array).astype(np.float64)


def _reset_positions(capture: GateCapture, example: int, steps: int) -> np.ndarray:
    """Returns the positions of the resets on the time axis, between two steps."""
    if capture.resets is None:
        return np.zeros(0)
    return np.flatnonzero(capture.resets[:steps, example]) + (0.5 if capture.reverse else -0.5)


def _annotation(owner: str, inputs: Any, time: int, steps: int) -> Annotation:
    """Returns the annotation of the drawn steps.

    Args:
      owner: the function that the user called.
      inputs: the argument `inputs`, with an entry for each of the T steps or each drawn step.
      time: the number of steps T.
      steps: the number of drawn steps.
    """
    if inputs is None:
        return None
    if isinstance(inputs, str) or (
        isinstance(inputs, Sequence) and all(isinstance(item, str) for item in inputs)
    ):
        annotation = list(inputs)
    else:
        annotation = np.asarray(inputs).astype(np.float64)
        if annotation.ndim != 2:
            raise ValueError(
                f"{owner}: inputs must be characters, words, or an array (time, features), "
                f"got shape {annotation.shape}"
            )
    if len(annotation) not in (time, steps):
        raise ValueError(
            f"{owner}: inputs must have one entry for each of the {time} steps, got "
            f"{len(annotation)} entries"
        )
    return annotation[:steps]
