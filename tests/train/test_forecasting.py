"""Forecasts: losses and scores against NumPy loops and SciPy, intervals, and alignment in time."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import jrnn
from jrnn.tasks import Table, load
from jrnn.tasks.common import StandardScaler
from jrnn.tasks.forecast import MIN_STD, Forecast
from jrnn.tasks.task import DataSpec, Split
from jrnn.train import Experiment, Network, forecast_scores
from jrnn.train.config.network import InputAdapter, make_input_adapter
from jrnn.train.forecasting import fit_half_widths, forecast_rows, score_rows
from jrnn.train.scores import losses_and_metrics, score, scored_targets
from jrnn.train.step.loss import Objective
from jrnn.train.train import check_experiment

QUANTILES = (0.1, 0.5, 0.8)


def make_forecast(distribution: str = "point", **options) -> Forecast:
    fields = {
        "targets": ("a", "b"),
        "columns": ("x", "b", "a"),
        "horizon": 3,
        "recursive": False,
        "quantiles": QUANTILES,
        "masks": False,
        "window": 4,
        "warmup": 1,
    }
    return Forecast(**(fields | {"distribution": distribution} | options))


def write_index(folder: Path, rows: int, columns: str = "a") -> str:
    """Writes a series that is its own index, and twice the index in further columns."""
    path = folder / "index.csv"
    names = columns.split()
    lines = [",".join(str(row * (k + 1)) for k in range(len(names))) for row in range(rows)]
    path.write_text(",".join(names) + "\n" + "\n".join(lines) + "\n")
    return str(path)


def make_outputs(distribution: str):
    """Random outputs, targets with NaN, and masks of 5 windows of 4 rows with 6 targets."""
    rng = np.random.default_rng(0)
    forecast = make_forecast(distribution)
    outputs = rng.normal(size=(5, 4, forecast.num_outputs)).astype(np.float32)
    ys = rng.normal(size=(5, 4, 6)).astype(np.float32)
    ys[rng.random(ys.shape) < 0.3] = np.nan
    return forecast, outputs, ys, rng.random((5, 4)) < 0.6


def reference_losses(forecast: Forecast, output: np.ndarray, ys: np.ndarray):
    """Loss and squared error of each target of one row, by SciPy and loops."""
    losses, squares = [], []
    for k, y in enumerate(ys):
        parts = output[k :: len(ys)].astype(float)
        if forecast.distribution == "point":
            losses.append((parts[0] - y) ** 2)
        elif forecast.distribution == "gaussian":
            std = np.log1p(np.exp(parts[1])) + MIN_STD
            losses.append(-scipy.stats.norm.logpdf(y, parts[0], std))
        else:
            pinball = [
                q * (y - p) if y >= p else (1 - q) * (p - y)
                for q, p in zip(QUANTILES, parts, strict=True)
            ]
            losses.append(np.mean(pinball))
        center = sorted(parts)[1] if forecast.distribution == "quantiles" else parts[0]
        squares.append((center - y) ** 2)
    return losses, squares


@pytest.mark.parametrize("distribution", ["point", "gaussian", "quantiles"])
def test_losses_and_scores_match_loops(distribution):
    forecast, outputs, ys, mask = make_outputs(distribution)
    rows = [
        (n, t, *reference_losses(forecast, outputs[n, t], ys[n, t])) for n, t in np.ndindex(5, 4)
    ]
    expected = {
        "loss": np.nanmean([losses for *_, losses, _ in rows]),
        "metric": np.nanmean([squares for n, t, _, squares in rows if mask[n, t]]),
    }
    objective = Objective("value_per_step", "mse", forecast)
    batch = Split(np.zeros((5, 4, 3), np.float32), ys, metric_mask=mask)

    def loss(outputs):
        sums = objective.compute_sums(outputs, batch)
        return sums.loss / sums.loss_weight, sums

    (_, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(outputs))
    assert sums.means() == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(grads).all() and (np.asarray(grads) != 0).any()
    losses, squares = forecast_scores.losses_and_squares(forecast, ys, outputs)
    assert np.nanmean(losses) == pytest.approx(expected["loss"], rel=1e-5)
    assert np.nanmean(squares[mask]) == pytest.approx(expected["metric"], rel=1e-5)


def test_padding_is_not_in_the_loss():
    forecast, outputs, ys, _ = make_outputs("gaussian")
    lengths = np.array([4, 2, 3, 1, 4], np.int32)
    valid = np.arange(4) < lengths[:, None]
    objective = Objective("value_per_step", "mse", forecast)
    padded = Split(np.zeros((5, 4, 3)), np.where(valid[..., None], ys, 1e9), lengths)
    row_mask = np.array([True, True, True, False, True])
    sums = objective.compute_sums(jnp.asarray(outputs), padded, jnp.asarray(row_mask))
    losses = forecast_scores.losses_and_squares(forecast, ys, outputs)[0]
    losses = losses[valid & row_mask[:, None]]
    assert sums.means()["loss"] == pytest.approx(np.nanmean(losses), rel=1e-5)


@pytest.mark.parametrize("distribution", ["point", "gaussian", "quantiles"])
def test_scores_include_the_same_targets_as_the_loss(distribution):
    forecast, outputs, ys, metric_mask = make_outputs(distribution)
    ys[1, 1], metric_mask[1, 1] = np.nan, True
    spec = DataSpec(
        target="value_per_step",
        metric="mse",
        input_size=3,
        output_size=6,
        baseline=("persistence", 1.0),
        input_names=forecast.input_names,
        target_names=forecast.output_names,
        input_scaler=StandardScaler((0.0,) * 3, (1.0,) * 3),
        target_scaler=StandardScaler((0.0,) * 6, (1.0,) * 6),
        forecast=forecast,
    )
    lengths = np.array([4, 2, 3, 1, 4], np.int32)
    split = Split(np.zeros((5, 4, 3), np.float32), ys, lengths)
    objective = Objective("value_per_step", "mse", forecast)
    for mask in (None, metric_mask):
        split = split._replace(metric_mask=mask)
        expected = np.zeros(ys.shape, bool)
        for n, t, k in np.ndindex(ys.shape):
            is_scored = t < lengths[n] and (mask is None or mask[n, t])
            expected[n, t, k] = is_scored and not np.isnan(ys[n, t, k])
        np.testing.assert_array_equal(scored_targets(spec, split), expected)
        result = score(spec, split, outputs)
        assert result["items"] == expected.any(axis=-1).sum()
        sums = objective.compute_sums(jnp.asarray(outputs), split)
        assert result["metric"] == pytest.approx(sums.means()["metric"], rel=1e-5)
        losses, _ = losses_and_metrics(spec, ys, outputs)
        assert losses.shape == ys.shape
        assert result["loss"] == pytest.approx(losses[expected].mean())
        if mask is None:
            assert result["loss"] == pytest.approx(sums.means()["loss"], rel=1e-5)


def test_crps_of_a_gaussian_is_its_integral():
    forecast, outputs, _, _ = make_outputs("gaussian")
    output, ys = outputs[0, 0], np.array([-2.0, -0.3, 0.0, 0.4, 1.5, 3.0])
    actual = forecast_scores.crps(forecast, ys, output)
    assert actual is not None
    for k, y in enumerate(ys):
        cdf = scipy.stats.norm(output[k], np.log1p(np.exp(output[6 + k])) + MIN_STD).cdf
        below = scipy.integrate.quad(lambda x, cdf=cdf: cdf(x) ** 2, -20, y)[0]
        above = scipy.integrate.quad(lambda x, cdf=cdf: (1 - cdf(x)) ** 2, y, 20)[0]
        assert actual[k] == pytest.approx(below + above, rel=1e-4)


def test_crps_of_many_quantiles_is_that_of_the_distribution():
    levels = tuple(np.linspace(0.005, 0.995, 199).round(3).tolist())
    quantiles = dataclasses.replace(make_forecast("quantiles"), quantiles=levels, targets=("a",))
    gaussian = dataclasses.replace(quantiles, distribution="gaussian")
    logit = np.log(np.expm1(1.0 - MIN_STD))
    ys, outputs = np.full(3, 0.7), scipy.stats.norm.ppf(levels).repeat(3)
    exact = forecast_scores.crps(gaussian, ys, np.repeat([0.0, logit], 3))
    approximate = forecast_scores.crps(quantiles, ys, outputs)
    np.testing.assert_allclose(approximate, exact, rtol=0.01)


def test_half_widths_are_the_conformal_quantile():
    errors = np.array([[3.0, np.nan], [-1.0, 2.0], [2.0, -5.0], [-4.0, np.nan]])
    # The ranks are ceil(5 * 0.6) = 3 of 4, and ceil(3 * 0.6) = 2 of 2.
    np.testing.assert_array_equal(forecast_scores.half_widths(errors, 0.6), [3, 5])
    np.testing.assert_array_equal(forecast_scores.half_widths(errors, 0.9), [4, 5])
    assert np.isnan(forecast_scores.half_widths(np.full((2, 1), np.nan), 0.9)).all()


def test_half_widths_cover_new_errors():
    rng = np.random.default_rng(0)
    widths = [forecast_scores.half_widths(rng.normal(size=19), 0.9) for _ in range(2000)]
    covered = np.abs(rng.normal(size=2000)) <= widths
    assert covered.mean() == pytest.approx(0.9, abs=0.02)  # (n + 1) * 0.9 is an int


@pytest.mark.parametrize("distribution", ["gaussian", "quantiles"])
def test_scores_in_units_have_the_coverage_of_the_true_distribution(distribution, tmp_path):
    """Targets are drawn from the distribution that the outputs describe."""
    task = Table(write_index(tmp_path, 400), window=8, horizon=2, distribution=distribution)
    data = load(task)
    forecast, rng = data.forecast, np.random.default_rng(1)
    assert forecast is not None and data.target_scaler is not None
    ys = rng.normal(1.0, 0.5, (4000, 8, 2)).astype(np.float32)
    split = Split(np.repeat(data.test.xs[:1], 4000, 0), ys)
    if distribution == "gaussian":
        outputs = np.repeat([1.0, np.log(np.expm1(0.5))], 2)
    else:
        outputs = scipy.stats.norm.ppf(forecast.quantiles, 1.0, 0.5).repeat(2)
    outputs = np.broadcast_to(outputs, (4000, 8, len(outputs))).astype(np.float32)
    scores = score(data.spec, split, outputs, {"persistence": np.zeros_like(ys)})
    assert scores["coverage"] == pytest.approx(0.9, abs=0.01) and scores["level"] == 0.9
    scale = data.target_scaler.std[0]
    target = scores["targets"][0]
    assert target["rmse"] == pytest.approx(0.5 * scale, rel=0.02)
    assert target["baseline_rmse"] == pytest.approx(np.sqrt(1.25) * scale, rel=0.02)
    expected = 0.5 * scale / np.sqrt(np.pi)  # the mean CRPS of the true Gaussian
    assert target["crps"] == pytest.approx(
        expected, rel=0.02 if distribution == "gaussian" else 0.2
    )
    assert [(entry["horizon"], entry["target"]) for entry in scores["horizons"]] == [
        (1, "a"),
        (2, "a"),
    ]


@pytest.mark.parametrize("recursive", [False, True])
def test_forecasts_of_the_index_are_the_next_rows(recursive, tmp_path):
    """A network that predicts that a row is one more than the last gives the rows after the file.

    Any shift between inputs, targets and forecast rows changes the result.
    """
    path = write_index(tmp_path, 100, "x y")
    targets = ("y", "x") if recursive else ("y",)
    task = Table(path, targets=targets, window=8, horizon=5, recursive=recursive)
    data = load(task)
    assert data.forecast is not None and data.target_scaler is not None
    slopes = np.tile([2, 1] if recursive else [2], data.forecast.steps)
    ahead = np.repeat(np.arange(1, data.forecast.steps + 1), len(targets))
    exact = (slopes * ahead / np.asarray(data.target_scaler.std)).astype(np.float32)
    np.testing.assert_allclose(data.test.ys, np.broadcast_to(exact, data.test.ys.shape), rtol=1e-4)
    apply = lambda split: np.broadcast_to(exact, (*split.xs.shape[:2], len(exact)))
    rows = forecast_rows(data.spec, apply, task.read_context(path, data.spec))
    expected = np.arange(100, 105)[:, None] * ([2, 1] if recursive else [2])
    np.testing.assert_allclose(rows.points[0], expected, rtol=1e-6)
    for split, first, end in (("validation", 70, 85), ("test", 85, 100)):
        origins = task.find_origins(data.spec, split, 100)
        found = forecast_rows(data.spec, apply, origins.context)
        np.testing.assert_allclose(found.points, origins.truth, rtol=1e-5)
        np.testing.assert_array_equal(origins.truth[[0, -1], 0, 0], [2 * first, 2 * (end - 5)])
        scores = score_rows(data.spec, found, origins)
        assert scores["targets"][0]["mae"] < 1e-3 and scores["origins"] == 11
        assert scores["targets"][0]["baselines"][0]["mae"] == pytest.approx(6)  # 2 * 3
    widths = fit_half_widths(task, data, apply)
    assert widths is not None and widths.shape == (5 * len(targets),) and widths.max() < 1e-3


@pytest.mark.parametrize("recursive", [False, True])
def test_missing_intervals_have_the_units_of_their_target(recursive, tmp_path):
    """The column y is 1000 x, but all of its values in the validation part are missing."""
    values = np.random.default_rng(0).normal(size=100).cumsum()
    lines = [f"{x},{'' if 70 <= row < 85 else 1000 * x}" for row, x in enumerate(values)]
    path = tmp_path / "units.csv"
    path.write_text("x,y\n" + "\n".join(lines) + "\n")
    task = Table(str(path), window=8, horizon=2, recursive=recursive, missing="fill")
    data = load(task)
    assert data.forecast is not None
    apply = lambda split: np.zeros((*split.xs.shape[:2], data.num_outputs), np.float32)
    widths = fit_half_widths(task, data, apply)
    assert widths is not None
    x, y = widths.reshape(2, 2).T
    np.testing.assert_allclose(y, 1000 * x.max(), rtol=1e-6)


def test_recursive_forecasts_read_their_own_predictions(tmp_path):
    """The network doubles its last input, which is a prediction after the first row."""
    path = write_index(tmp_path, 60)
    task = Table(path, window=4, horizon=4, recursive=True)
    data = load(task)
    scaler = data.target_scaler
    assert scaler is not None and data.input_scaler is not None

    def apply(split):
        values = data.input_scaler.invert(split.xs)
        return values / np.asarray(scaler.std)

    rows = forecast_rows(data.spec, apply, task.read_context(path, data.spec), np.full(4, 10.0))
    np.testing.assert_allclose(rows.points[0, :, 0], 59.0 * 2 ** np.arange(1, 5), rtol=1e-4)
    assert rows.low is not None
    np.testing.assert_allclose(rows.points - rows.low, 10)


def test_recursive_forecasts_continue_masks_and_calendar(tmp_path):
    times = np.datetime64("2024-01-01T00", "h") + np.arange(24 * 20)
    values = [str(row) if row % 7 else "" for row in range(len(times))]
    values[-2:] = ["", ""]
    lines = [f"{time},{value}" for time, value in zip(times, values, strict=True)]
    path = tmp_path / "dated.csv"
    path.write_text("date,a\n" + "\n".join(lines) + "\n")
    task = Table(str(path), window=4, horizon=3, recursive=True, missing="mask")
    data, seen = load(task), []
    assert data.input_names is not None and data.input_scaler is not None

    def apply(split):
        seen.append(data.input_scaler.invert(split.xs)[0])
        return np.zeros((*split.xs.shape[:2], 1), np.float32)

    forecast_rows(data.spec, apply, task.read_context(str(path), data.spec))
    at = {name: index for index, name in enumerate(data.input_names)}
    last = seen[-1]  # rows -2, -1, 1 and 2 from the end of the file
    np.testing.assert_array_equal(last[:, at["a observed"]], [0, 0, 1, 1])
    np.testing.assert_array_equal(last[:, at["a interval"]], [1, 2, 3, 1])
    hours = 2 * np.pi * np.array([22, 23, 0, 1]) / 24
    np.testing.assert_allclose(last[:, at["day (sine)"]], np.sin(hours), atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "kind", "size"),
    [(jrnn.GRUD(3), "observed", 2), (jrnn.CfC(3), "timed", 4), (jrnn.LSTM(3), "array", 6)],
)
def test_cells_get_masks_and_intervals_in_their_form(cell, kind, size, tmp_path):
    path = write_index(tmp_path, 60, "a b")
    data = load(Table(path, window=4, missing="mask"))
    adapter, input_size = make_input_adapter(cell, 1, data)
    assert (adapter, input_size) == (InputAdapter(2, kind), size)
    xs = jnp.arange(7.0)
    expected = {
        "observed": jrnn.Observed(xs[:2], xs[2:4], xs[4:6]),
        "timed": jrnn.Timed(xs[:4], xs[6]),
        "array": xs[:6],
    }[kind]
    jax.tree.map(np.testing.assert_array_equal, adapter(xs), expected)
    experiment = Experiment(Table(path), Network(cell), batch_size=4)
    check_experiment(experiment, data)  # traces the network


def test_cells_that_need_masks_are_refused_without_them(tmp_path):
    data = load(Table(write_index(tmp_path, 60), window=4))
    for cell in (jrnn.GRUD(3), jrnn.stack([jrnn.GRUD(3), jrnn.GRU(3)])):
        with pytest.raises(ValueError, match="GRUD.* needs masks .* --task.missing mask"):
            Network(cell).build(data, 0)
    with pytest.raises(ValueError, match="num_layers must be 1 for a cell that reads masks"):
        make_input_adapter(jrnn.GRUD(3), 2, data)


def test_contradicting_properties_of_a_forecast_raise(tmp_path):
    spec = load(Table(write_index(tmp_path, 60), window=4, horizon=2)).spec
    forecast = spec.forecast
    assert forecast is not None
    for change in ({"horizon": 3}, {"distribution": "x"}, {"targets": ("z",)}, {"warmup": 4}):
        with pytest.raises(ValueError, match="Forecast|Data: sizes"):
            dataclasses.replace(spec, forecast=dataclasses.replace(forecast, **change))
    for change in ({"output_size": 1}, {"input_names": ("z",)}, {"target_scaler": None}):
        with pytest.raises(ValueError, match="must be those of the forecast"):
            dataclasses.replace(spec, **change)
