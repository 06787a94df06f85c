"""The panel of a forecast in the figure of a run, in the units of the file."""

import numpy as np

from jrnn.plotting import hide_spines
from jrnn.tasks.conversion import decode_forecast, decode_truth
from jrnn.tasks.forecast import current_values
from jrnn.tasks.task import Data
from jrnn.train.data.sampler import take
from jrnn.train.fit import FitResult
from jrnn.train.step.evaluate import predict

MAX_WINDOWS = 3
"""Maximum number of test windows in the panel."""


def draw_forecasts(panel, data: Data, result: FitResult) -> None:
    """Draws the forecasts at the last row of some test windows, for the first target.

    Args:
      panel: a figure or subfigure of matplotlib.
      data: the data of a forecast.
      result: the result of `train`.
    """
    forecast, input_scaler = data.forecast, data.input_scaler
    if forecast is None or input_scaler is None:
        raise ValueError("save_figure: the data must be a forecast, got another task")
    count = min(MAX_WINDOWS, len(data.test.xs))
    examples = take(data.test, np.linspace(0, len(data.test.xs) - 1, count).round().astype(int))
    outputs = predict(result.model, examples)
    current = current_values(forecast, input_scaler, examples.xs)
    truth = decode_truth(data, examples.ys, examples.xs)
    points, low, high = decode_forecast(data, outputs, examples.xs)
    past = np.arange(1 - forecast.window, 1)
    ahead = np.arange(1, forecast.steps + 1)
    first = slice(0, None, len(forecast.targets))  # the first target in each row ahead
    axes = np.atleast_1d(panel.subplots(1, count, sharey=True))
    for row, ax in enumerate(axes):
        ax.plot(past, current[row, :, 0], lw=1, color="0.4", label="inputs")
        ax.plot(ahead, truth[row, -1, first], lw=1, marker=".", ms=3, label="true")
        ax.plot(ahead, points[row, -1, first], lw=1, ls="--", marker=".", ms=3, label="forecast")
        if low is not None and high is not None:
            ends = low[row, -1, first], high[row, -1, first]
            ax.fill_between(ahead, *ends, alpha=0.2, lw=0, color="tab:orange")
        hide_spines(ax)
    panel.supxlabel(
        "rows after the last row of the inputs", fontsize=axes[0].xaxis.label.get_size()
    )
    axes[0].set(ylabel=f"{forecast.targets[0]}\n(original units)")
    panel.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
