"""Cells one above another."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn.cell import Below, Carry, Cell, Gates, Inputs, Params, Timed, scope
from jrnn.transforms.wrapper import Wrapper, keys_for


@dataclass(frozen=True)
class Stack(Cell):
    r"""Cells one above another: each takes the output of the one below.

    ::

        s1', y1 = cell_1(s1, x),   s2', y2 = cell_2(s2, y1),   ...   y = y_n

    Over a sequence the layers run one after another, each for all of time and as the engine does
    best for that cell; step by step the whole is a cell like any other. To a cell that takes it,
    such as `jrnn.DepthGatedLSTM`, the cell state of the layer below is handed as well; and where
    inputs are `Timed`, all cells that take times, such as `jrnn.CfC`, are given them.

    Parameters and carry are tuples with one entry for each layer.

    Args:
      cells: the cells, from below; transforms of cells too, and `Bidirectional`.

    Raises:
      TypeError: one of them is no cell.
      ValueError: there are none; or, when run, a cell takes a state that the one below lacks.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Stack([jrnn.LSTM(hidden_size=4), jrnn.GRU(hidden_size=5)])
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> (first, second), ys = jrnn.unroll(cell, params, jnp.ones((9, 2, 3)))
    >>> first.c.shape, second.shape, ys.shape
    ((2, 4), (2, 5), (9, 2, 5))

    References:
      Graves, Mohamed and Hinton, 2013, Speech recognition with deep recurrent neural networks.
    """

    cells: tuple[Cell, ...]
    pointwise = False

    def __post_init__(self) -> None:
        if not isinstance(self.cells, Sequence) or not self.cells:
            raise ValueError(
                f"Stack: cells must be a list of cells, at least one, got {self.cells!r}"
            )
        for cell in self.cells:
            if not isinstance(cell, Cell):
                raise TypeError(f"Stack: each must be a cell such as jrnn.LSTM(64), got {cell!r}")
        for cell in self.cells[1:]:
            if not isinstance(cell.inputs(1, ()), jax.Array):
                raise ValueError(
                    f"Stack: {cell!r} takes more than the output of a layer below; only the first "
                    "cell may"
                )
        object.__setattr__(self, "cells", tuple(self.cells))

    @property
    def hidden_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.cells[-1].hidden_size

    @property
    def stepwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(cell.stepwise for cell in self.cells)

    @property
    def directions(self) -> tuple[bool, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.cells[-1].directions

    @property
    def takes_below(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.cells[0].takes_below

    @property
    def takes_time(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(cell.takes_time for cell in self.cells)

    @property
    def reverse_only(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(cell.reverse_only for cell in self.cells)

    @property
    def perturb(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._perturb if any(cell.perturb is not None for cell in self.cells) else None

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        params, size = [], input_size
        for k, cell in zip(jax.random.split(key, len(self.cells)), self.cells, strict=True):
            params.append(cell.init(k, size, dtype))
            size = cell.output(params[-1], size).shape[-1]
        return tuple(params)

    def output(self, params: Params, input_size: int) -> Any:
        size, y = input_size, None
        for cell, p in zip(self.cells, params, strict=True):
            y = cell.output(p, size)
            size = y.shape[-1]
        return y

    def init_carry(self, params: Params, batch_shape: tuple[int, ...]) -> Carry:
        pairs = zip(self.cells, params, strict=True)
        return tuple(cell.init_carry(p, batch_shape) for cell, p in pairs)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Inputs:
        return self.cells[0].inputs(input_size, batch_shape, dtype)

    def _perturb(
        self, params: Params, xs: Inputs, leading: tuple[int, ...], key: jax.Array | None
    ) -> tuple[Params, Any]:
        perturbed, noises = [], []
        xs, dt = self._untimed(xs)
        for n, k in enumerate(keys_for(key, len(self.cells))):
            cell, p, noise = self.cells[n], params[n], None
            if cell.perturb is not None:
                p, noise = cell.perturb(p, xs, leading, k)
            perturbed.append(p)
            noises.append(noise)
            if n + 1 < len(self.cells):
                xs = jax.eval_shape(partial(self._passed_up, n, leading), p, xs, noise, dt)
        return tuple(perturbed), noises

    def _passed_up(
        self, n: int, leading: tuple[int, ...], params: Params, xs: Inputs, noise: Any, dt: Any
    ) -> Inputs:
        """What the cell above cell n is given at all steps, for its shapes."""
        cell = self.cells[n]
        carry = cell.init_carry(params, leading)
        z = cell.project(params, xs if cell.perturb is None else (xs, noise))
        return self._above(n, *cell.update(params, carry, z, cell.recur(params, carry)), dt)

    def _project_one(self, n: int, params: Params, x: Inputs, noises: Any) -> Gates:
        cell = self.cells[n]
        return cell.project(params[n], x if cell.perturb is None else (x, noises[n]))

    def project(self, params: Params, x: Inputs) -> Gates:
        x, noises = (x, None) if self.perturb is None else x
        x, dt = self._untimed(x)
        return self._project_one(0, params, x, noises), noises, dt

    def recur(self, params: Params, carry: Carry) -> Gates:
        triples = zip(self.cells, params, carry, strict=True)
        return tuple(cell.recur(p, c) for cell, p, c in triples)

    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, Any]:
        (z, noises, dt), carries, y = z, [], None
        for n, cell in enumerate(self.cells):
            if n > 0:
                z = self._project_one(n, params, self._above(n - 1, carries[-1], y, dt), noises)
            with scope(str(n)):
                after, y = cell.update(params[n], carry[n], z, u[n])
            carries.append(after)
        return tuple(carries), y

    def sequence(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, run: Any, params: Params, xs: Inputs, carry: Carry | None, key: jax.Array | None
    ) -> tuple[Carry, Any]:
        carries = []
        xs, dt = self._untimed(xs)
        for n, k in enumerate(keys_for(key, len(self.cells))):
            cell = _Shown(self.cells[n]) if self._hands_over(n) else self.cells[n]
            first = None if carry is None else carry[n]
            last, xs = run(cell, params[n], self._timed(n, xs, dt) if n else xs, first, k)
            carries.append(last)
        return tuple(carries), xs

    def _hands_over(self, n: int) -> bool:
        """Whether the cell above takes the state of cell n."""
        return n + 1 < len(self.cells) and self.cells[n + 1].takes_below

    def _above(self, n: int, carry: Carry, y: Any, dt: Any) -> Inputs:
        """What the cell above cell n is given."""
        y = Below(y, _state(self.cells[n], carry)) if self._hands_over(n) else y
        return self._timed(n + 1, y, dt)

    def _untimed(self, x: Inputs) -> tuple[Inputs, Any]:
        """What the first cell is given, and the times where inputs have them."""
        if not self.takes_time or not isinstance(x, Timed):
            return x, None
        return self._timed(0, x.x, x.dt), x.dt

    def _timed(self, n: int, x: Inputs, dt: Any) -> Inputs:
        """The input of cell n with the times, if there are any and it takes them."""
        return Timed(x, dt) if dt is not None and self.cells[n].takes_time else x


@dataclass(frozen=True)
class _Shown(Wrapper):
    """A cell that shows its state beside its output, for the cell above."""

    @property
    def owner(self) -> str:
        return "Stack: below a cell that takes a cell state"

    def update(self, params: Params, carry: Carry, z: Gates, u: Gates) -> tuple[Carry, Below]:
        carry, y = self.cell.update(params, carry, z, u)
        return carry, Below(y, _state(self.cell, carry))


def _state(cell: Cell, carry: Carry) -> jax.Array:
    fields = getattr(carry, "_fields", ())
    if "c" not in fields:
        raise ValueError(
            "Stack: the cell above takes the cell state c of the layer below, and the carry of "
            f"{cell!r} has none; put a cell such as jrnn.LSTM there"
        )
    return carry.c
