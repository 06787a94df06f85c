"""Renders the equations of docstrings, which are plain text, as MathML."""

import html
import re
from collections.abc import Iterator

from latex2mathml.converter import convert

BLOCK = re.compile(r"^(\s*)::\n\n((?:\1    .*\n|\s*\n)+)", re.MULTILINE)
"""Matches an indented block after `::` in a docstring that ends with a newline."""
_TOKENS = re.compile(
    r"\s+|<-|\\sqrt\{|[A-Za-z]+\d*(?:_log)?~?(?:_[A-Za-z0-9]+)*'?(?:_[A-Za-z0-9]+)?|\d+(?:\.\d+)?|\.\.\.|."
)
_GREEK = {"alpha", "beta", "gamma", "epsilon", "lambda", "sigma", "tau", "theta", "nu", "zeta"}
_FUNCTIONS = {
    "sigmoid": r"\sigma",
    "tanh": r"\tanh",
    "exp": r"\exp",
    "log": r"\log",
    "max": r"\max",
    "min": r"\min",
}
_WORDS = {"if", "else", "mod", "backward", "pass", "at", "each"}
_OPERATORS = {
    "*": r" \odot ",
    "\N{ASTERISK OPERATOR}": r" \ast ",
    "<-": r" \leftarrow ",
    "...": r" \dots ",
    "~": r" \sim ",
}


def render(text: str) -> str:
    """Returns the equations of a block as an HTML table: equations, and comments beside them.

    Args:
      text: the lines of the block; three spaces or more separate an equation from its comment.
    """
    rows = []
    for line in text.splitlines():
        if not line.strip():
            continue
        equation, comment = _split(line.strip())
        cells = f"<td>{convert(to_latex(equation))}</td>"
        rows.append(f"<tr>{cells}<td>{html.escape(comment)}</td></tr>")
    return f'<table class="equations"><tbody>{"".join(rows)}</tbody></table>'


def _split(line: str) -> tuple[str, str]:
    """Returns the equation of a line and its comment; several equations have no comment."""
    equation, gap, comment = re.match(r"(.*?)(?:(\s{3,})(.*))?$", line).groups(default="")
    if equation.endswith(","):
        more, comment = _split(comment)
        return f"{equation}{gap[:3]}{more}", comment
    return equation, comment


def to_latex(equation: str) -> str:
    r"""Translates an equation of a docstring to LaTeX.

    >>> print(to_latex("c = f * c + tanh(W_g x)"))
    c = f  \odot  c + \tanh (W_{g} x)
    """
    equation = re.sub(r"sqrt\(([^()]*)\)", r"\\sqrt{\1}", equation)
    return "".join(_translate(equation)).strip()


def _translate(equation: str) -> Iterator[str]:
    for token in _TOKENS.findall(equation):
        if token == "\\sqrt{" or token in _WORDS:
            yield token if token not in _WORDS else rf"\text{{ {token} }}"
        elif token.isspace():
            yield r" \quad " if len(token) > 2 else " "
        elif token in _OPERATORS:
            yield _OPERATORS[token]
        elif token[0].isalpha():
            yield _name(token) + (" " if token in _FUNCTIONS else "")
        else:
            yield token


def _name(token: str) -> str:
    """Translates a name with subscripts, a prime or a tilde."""
    prime = r"^{\prime}" if "'" in token else ""
    token = token.replace("'", "")
    base, *subscripts = token.split("_")
    tilde = base.endswith("~")
    base = base.removesuffix("~")
    if base in _FUNCTIONS and not subscripts:
        return _FUNCTIONS[base]
    if base in _GREEK:
        base = f"\\{base}"
    elif len(base) > 1 and not re.fullmatch(r"[A-Za-z]\d+", base):
        base = rf"\mathrm{{{base}}}"
    elif len(base) > 1:
        base = f"{base[0]}_{{{base[1:]}}}"
    if tilde:
        base = rf"\tilde{{{base}}}"
    if not subscripts:
        return base + prime
    names = (rf"\mathrm{{{s}}}" if len(s) > 1 else s for s in subscripts)
    return f"{base}{prime}_{{{','.join(names)}}}"
