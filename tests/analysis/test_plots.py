"""Tests that the figures of `jrnn.analysis` show the values of a capture."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import jrnn
from jrnn.analysis import (
    GateCapture,
    capture_gates,
    plot_cell_state,
    plot_gates,
    plot_retention,
    plot_unit,
    retention,
)

T, B, HIDDEN = 6, 3, 5
LENGTHS = (T, 4, 0)
RESET = 2
NOT_AN_INT: Any = None


def make_capture(cell, **options):
    """Captures the gates of a cell with random biases on T steps of B random sequences."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = cell.init(keys[0], 3)
    params = params._replace(b=jax.random.normal(keys[1], params.b.shape, jnp.float32))
    return capture_gates(
        cell, params, jax.random.normal(keys[2], (T, B, 3), jnp.float32), **options
    )


@pytest.fixture(scope="module")
def capture() -> GateCapture:
    """A capture of an LSTM with a reset in the second sequence, and an empty third sequence."""
    resets = jnp.zeros((T, B), bool).at[RESET, 1].set(True)
    return make_capture(jrnn.LSTM(HIDDEN), lengths=jnp.array(LENGTHS), resets=resets)


def image_of(axes):
    """Returns the values of the only image in the axes; masked values are NaN."""
    (image,) = axes.images
    return np.ma.filled(image.get_array(), np.nan)


# --- gates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [0, 1])
def test_plot_gates_shows_all_gates_without_padding(capture, example):
    figure = plot_gates(capture, example)
    axes = [a for a in figure.axes if a.get_ylabel()]
    assert [a.get_ylabel() for a in axes] == ["i", "f", "g", "o"]
    for a in axes:
        expected = np.asarray(capture.gates[a.get_ylabel()])[: LENGTHS[example], example].T
        np.testing.assert_array_equal(image_of(a), expected)


def test_plot_gates_scale_depends_on_the_sign_of_the_values(capture):
    limits = {
        a.get_ylabel(): (*a.images[0].get_clim(), a.images[0].get_cmap().name)
        for a in plot_gates(capture).axes
        if a.get_ylabel()
    }
    assert limits["i"] == limits["f"] == limits["o"] == (0.0, 1.0, "viridis")
    assert limits["g"] == (-1.0, 1.0, "RdBu_r")


def test_plot_gates_extends_the_scale_for_gates_above_one(capture):
    gate = jnp.zeros((T, B, HIDDEN)).at[0, 2, 0].set(3.0)
    figure = plot_gates(capture._replace(gates={"h": gate}))
    assert figure.axes[0].images[0].get_clim() == (0.0, 3.0)


def test_plot_gates_sorts_units_by_peak_step(capture):
    peaks = [4, 0, 5, 2, 1]
    gate = np.full((T, B, HIDDEN), 0.1)
    gate[peaks, 0, np.arange(HIDDEN)] = 0.9
    sorted_by = plot_gates(capture._replace(gates={"k": gate, **capture.gates}), sort_by="k")
    order = np.argsort(peaks)
    np.testing.assert_array_equal(image_of(sorted_by.axes[0]), gate[:, 0, order].T)
    np.testing.assert_array_equal(
        image_of(sorted_by.axes[1]), np.asarray(capture.gates["i"])[:, 0, order].T
    )
    assert [t.get_text() for t in sorted_by.axes[1].get_yticklabels()] == [str(n) for n in order]


def test_plot_gates_shows_selected_gates_in_order(capture):
    axes = [a.get_ylabel() for a in plot_gates(capture, gates=("o", "f")).axes]
    assert axes[:2] == ["o", "f"]
    assert "i" not in axes


@pytest.mark.parametrize("inputs", ["abcdef", list("abcdef")])
@pytest.mark.parametrize("example", [0, 1])
def test_characters_are_labels_of_steps(capture, inputs, example):
    bottom_axes = plot_gates(capture, example, inputs=inputs).axes[3]
    labels = [label.get_text() for label in bottom_axes.get_xticklabels()]
    assert labels == list("abcdef")[: LENGTHS[example]]
    np.testing.assert_array_equal(bottom_axes.get_xticks(), np.arange(LENGTHS[example]))


def test_features_are_shown_below_the_gates(capture):
    xs = np.arange(T * 2.0).reshape(T, 2)
    axes = plot_gates(capture, 1, inputs=xs).axes[4]
    np.testing.assert_array_equal(image_of(axes), xs[:4].T)
    assert axes.get_xlim() == (-0.5, 3.5)


def test_resets_are_lines_before_their_step(capture):
    def line_positions(figure):
        return [line.get_xdata()[0] for line in figure.axes[0].lines]

    assert line_positions(plot_gates(capture, 1)) == [RESET - 0.5]
    assert line_positions(plot_gates(capture, 0)) == []
    assert line_positions(plot_gates(capture._replace(reverse=True), 1)) == [RESET + 0.5]


# --- state, unit ---------------------------------------------------------------------------------


def test_plot_cell_state_shows_all_units_and_selected_lines(capture):
    heatmap, lines = plot_cell_state(capture, 1, units=(3, 0)).axes[:2]
    c = np.asarray(capture.carries.c)[: LENGTHS[1], 1]
    np.testing.assert_array_equal(image_of(heatmap), c.T)
    drawn = {line.get_label(): line.get_ydata() for line in lines.lines}
    np.testing.assert_array_equal(drawn["c[3]"], c[:, 3])
    np.testing.assert_array_equal(drawn["c[0]"], c[:, 0])
    assert lines.get_legend_handles_labels()[1] == ["c[3]", "c[0]"]


def test_plot_cell_state_selects_units_of_largest_variance(capture):
    c = np.asarray(capture.carries.c)[:, 0]
    lines = plot_cell_state(capture, units=2).axes[1]
    expected = [f"c[{unit}]" for unit in np.argsort(-c.std(axis=0))[:2]]
    assert lines.get_legend_handles_labels()[1] == expected


@pytest.mark.parametrize(("cell", "state"), [(jrnn.GRU(HIDDEN), None), (jrnn.GRU(HIDDEN), "h")])
def test_carry_of_one_array_is_named_h(cell, state):
    capture = make_capture(cell)
    heatmap = plot_cell_state(capture, state=state).axes[0]
    np.testing.assert_array_equal(image_of(heatmap), np.asarray(capture.carries)[:, 0].T)
    assert heatmap.get_ylabel() == "h"


def test_plot_cell_state_shows_the_named_array(capture):
    heatmap = plot_cell_state(capture, state="h").axes[0]
    np.testing.assert_array_equal(image_of(heatmap), np.asarray(capture.carries.h)[:, 0].T)


def test_plot_unit_shows_gates_and_state(capture):
    gate_axes, state_axes = plot_unit(capture, 2, 1).axes[:2]
    drawn = {
        line.get_label(): np.asarray(line.get_ydata())
        for line in (*gate_axes.lines, *state_axes.lines)
    }
    for name, gate in capture.gates.items():
        np.testing.assert_array_equal(drawn[name], gate[:4, 1, 2])
    np.testing.assert_array_equal(drawn["c[2]"], capture.carries.c[:4, 1, 2])


# --- retention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("example", [0, 1])
def test_plot_retention_shows_the_mean_over_units(capture, example, reverse):
    steps = LENGTHS[example]
    figure = plot_retention(capture._replace(reverse=reverse), example)
    resets = capture.resets[:steps, example]
    expected = retention(capture.gates["f"][:steps, example], resets, reverse=reverse).mean(axis=-1)
    is_drawn = np.tri(steps, dtype=bool) if reverse else np.tri(steps, dtype=bool).T
    np.testing.assert_allclose(
        image_of(figure.axes[0]), np.where(is_drawn, expected, np.nan), rtol=1e-5, atol=1e-7
    )


def test_plot_retention_shows_one_unit_of_a_gate():
    capture = make_capture(jrnn.GRU(HIDDEN))
    image = image_of(plot_retention(capture, gate="z", unit=3).axes[0])
    z = np.asarray(capture.gates["z"])[:, 0, 3]
    np.testing.assert_allclose(image[1, 1:], np.cumprod([1.0, *z[2:]]), rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_plot_retention_with_a_mask_equals_retention_over_the_valid_steps(reverse):
    mask = np.array([True, False, True, True, False, True])
    resets = np.zeros((T, B), bool)
    resets[3] = True
    batch_mask = jnp.tile(mask[:, None], (1, B))
    capture = make_capture(jrnn.LSTM(HIDDEN), mask=batch_mask, resets=resets, reverse=reverse)
    image = image_of(plot_retention(capture).axes[0])
    f = capture.gates["f"][mask, 0]
    expected = retention(f, resets[mask, 0], reverse=reverse).mean(axis=-1)
    is_drawn = np.tri(len(f), dtype=bool) if reverse else np.tri(len(f), dtype=bool).T
    np.testing.assert_allclose(
        image[np.ix_(mask, mask)], np.where(is_drawn, expected, np.nan), rtol=1e-5, atol=1e-7
    )
    # The retention does not change on the masked steps.
    masked, previous = ([4, 1], [5, 2]) if reverse else ([1, 4], [0, 3])
    np.testing.assert_array_equal(image[mask][:, masked], image[mask][:, previous])


def test_plot_retention_draws_into_given_axes(capture):
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert plot_retention(capture, ax=axes[1], inputs="abcdef") is figure
    assert len(axes[1].images) == 1 and not axes[0].images
    for labels in (axes[1].get_xticklabels(), axes[1].get_yticklabels()):
        assert [label.get_text() for label in labels] == list("abcdef")


# --- all figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plot", [plot_gates, plot_cell_state, plot_retention])
def test_figures_can_be_saved_without_pyplot(capture, plot, tmp_path):
    fignums = plt.get_fignums()
    plot(capture, 1, inputs="abcdef").savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert plt.get_fignums() == fignums


def test_character_labels_are_omitted_for_long_sequences():
    gate = {"f": jnp.full((200, 1, 2), 0.5)}
    capture = GateCapture(gate, jnp.zeros((200, 1, 2)), jnp.zeros((1, 2)), jnp.zeros((200, 1, 2)))
    assert plot_gates(capture, inputs="a" * 200).axes[0].get_xlabel() == "step"


def test_import_does_not_load_matplotlib():
    code = "import sys, jrnn.analysis; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_missing_matplotlib_raises_with_install_command(capture, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'jrnn\[demo\]'"):
        plot_gates(capture)


@pytest.mark.parametrize(
    ("error", "message", "plot"),
    [
        (TypeError, "capture must be a GateCapture", lambda capture: plot_gates(capture.gates)),
        (ValueError, "example must be from 0 to 2, got 3", lambda capture: plot_gates(capture, 3)),
        (
            ValueError,
            "example must be from 0 to 2, got -1",
            lambda capture: plot_unit(capture, 0, -1),
        ),
        (
            TypeError,
            "example must be an int, got None",
            lambda capture: plot_unit(capture, 0, NOT_AN_INT),
        ),
        (
            ValueError,
            "example 2 must have at least 1 valid step",
            lambda capture: plot_gates(capture, 2),
        ),
        (
            ValueError,
            "one of i, f, g, o, got 'F'; did you",
            lambda capture: plot_gates(capture, gates=["F"]),
        ),
        (
            ValueError,
            "gates must be a list of names",
            lambda capture: plot_gates(capture, gates="fi"),
        ),
        (
            ValueError,
            "gates must be a list of names",
            lambda capture: plot_gates(capture, gates=()),
        ),
        (ValueError, "got 'q'", lambda capture: plot_gates(capture, sort_by="q")),
        (
            ValueError,
            "each of the 6 steps, got 3",
            lambda capture: plot_gates(capture, inputs="abc"),
        ),
        (ValueError, "got shape", lambda capture: plot_gates(capture, inputs=np.zeros(T))),
        (
            ValueError,
            "must have at least one gate, but the cell taps none",
            lambda capture: plot_gates(capture._replace(gates={})),
        ),
        (ValueError, "'h', 'c', got 'd'", lambda capture: plot_cell_state(capture, state="d")),
        (
            ValueError,
            "unit must be from 0 to 4, got 5",
            lambda capture: plot_cell_state(capture, units=[5]),
        ),
        (
            ValueError,
            "units must be a positive int",
            lambda capture: plot_cell_state(capture, units=0),
        ),
        (ValueError, "unit must be from 0 to 4, got 9", lambda capture: plot_unit(capture, 9)),
        (
            ValueError,
            "unit must be from 0 to 4, got 9",
            lambda capture: plot_retention(capture, unit=9),
        ),
        (
            ValueError,
            "gate 'g' must be between 0 and 1, got values from -",
            lambda capture: plot_retention(capture, gate="g"),
        ),
        (
            ValueError,
            "one of i, f, g, o, got 'z'",
            lambda capture: plot_retention(capture, gate="z"),
        ),
        (
            ValueError,
            "characters",
            lambda capture: plot_retention(capture, inputs=np.zeros((T, 2))),
        ),
        (
            ValueError,
            r"time, batch, hidden\), got \(2, 6, 3, 5\); if vmap stacked several",
            lambda capture: plot_gates(capture._replace(gates={"f": jnp.zeros((2, T, B, HIDDEN))})),
        ),
    ],
)
def test_invalid_arguments_raise(capture, error, message, plot):
    with pytest.raises(error, match=message):
        plot(capture)
