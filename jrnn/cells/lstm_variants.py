"""The variants of the LSTM compared in "LSTM: A search space odyssey", by name."""

from typing import Any

from jrnn import checks
from jrnn.cells.lstm import LSTM

VARIANTS: dict[str, dict[str, Any]] = {
    "vanilla": {"peepholes": True},
    "NIG": {"peepholes": True, "input_gate": False},
    "NFG": {"peepholes": True, "forget_gate": False},
    "NOG": {"peepholes": True, "output_gate": False},
    "NIAF": {"peepholes": True, "input_activation": "linear"},
    "NOAF": {"peepholes": True, "output_activation": "linear"},
    "CIFG": {"peepholes": True, "coupled": True},
    "NP": {"peepholes": False},
    "FGR": {"peepholes": True, "gate_recurrence": True},
}


def lstm_variant(name: str, hidden_size: int, **options: Any) -> LSTM:
    """Returns a variant of the LSTM, by its name in the paper; all but NP have peepholes.

    CIFG has f = 1 - i in the paper and i = 1 - f here, which is the same cell with the weights of
    the gate negated.

    Args:
      name: "vanilla", the LSTM with peepholes; "NIG", "NFG", "NOG", no input, forget or output gate
        (it is 1); "NIAF", "NOAF", no input or output activation; "CIFG", coupled input and forget
        gates; "NP", no peepholes; "FGR", full gate recurrence: the three gates depend on those of
        the previous step.
      hidden_size: number of units.
      **options: other arguments of `LSTM`, such as forget_bias.

    Raises:
      ValueError: the name is unknown, or an option is set by the variant or incompatible with it.

    >>> lstm_variant("NOG", 4).gates
    ('i', 'f', 'g')

    References:
      Greff et al., 2017, LSTM: A search space odyssey.
    """
    checks.one_of("lstm_variant", "name", name, VARIANTS)
    variant_options = VARIANTS[name]
    for option in options.keys() & variant_options.keys():
        raise ValueError(
            f"lstm_variant: variant {name} has {option}={variant_options[option]!r}, got "
            f"{option}={options[option]!r}; remove this option, or construct a jrnn.LSTM"
        )
    return LSTM(hidden_size, **variant_options, **options)
