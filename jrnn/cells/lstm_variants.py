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
    """The LSTM with one part changed, as in the paper, whose LSTM has peepholes.

    CIFG of the paper has f = 1 - i; here i = 1 - f. It is the same cell with the weights of the
    gate negated.

    Args:
      name: "vanilla", the LSTM with peepholes; "NIG", "NFG", "NOG", without input, forget or output
        gate (it is 1); "NIAF", "NOAF", without input or output activation; "CIFG", coupled input
        and forget gate; "NP", no peepholes; "FGR", full gate recurrence: the three gates depend on
        those of the previous step.
      hidden_size: number of units.
      **options: other arguments of `LSTM`, such as forget_bias.

    Raises:
      ValueError: the name is unknown, or an option is set by the variant or contradicts it.

    >>> lstm_variant("NOG", 4).gates
    ('i', 'f', 'g')

    References:
      Greff et al., 2017, LSTM: A search space odyssey.
    """
    checks.one_of("lstm_variant", "name", name, VARIANTS)
    switches = VARIANTS[name]
    for option in options.keys() & switches.keys():
        raise ValueError(
            f"lstm_variant: {name} sets {option}={switches[option]!r} itself, got "
            f"{option}={options[option]!r}; leave it out, or make a jrnn.LSTM"
        )
    return LSTM(hidden_size, **switches, **options)
