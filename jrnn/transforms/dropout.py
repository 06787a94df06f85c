"""Dropout of inputs, candidates, outputs and recurrent weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jrnn import checks, taps
from jrnn.cell import Carry, Coefficients, Gates, Inputs, Params, add_noise
from jrnn.dtypes import cast, sample_mask, widest_dtype
from jrnn.transforms.wrapper import Wrapper, WrapperGates


class DropoutMasks(NamedTuple):
    """Boolean masks `[T, *batch, ...]` for all steps, which are True where values are kept.

    `x` and `candidate` have one mask for each array to which dropout is applied. `y` is None if
    there is no dropout of the output.
    """

    x: list[jax.Array]
    candidate: list[jax.Array]
    y: jax.Array | None


@dataclass(frozen=True)
class Dropout(Wrapper):
    r"""Dropout of the input, of the candidate, and of the output.

    ::

        x~ = m_x * x                                    input of the inner cell
        n~ = m_n * n                                    replaces the candidate n in `update`
        y~ = m_y * y                                    output
        m ~ Bernoulli(1 - rate) / (1 - rate)            m_x, m_n and m_y with a key
        m = 1                                           without a key, the expected value

    By default, a sequence has the same mask at all steps (variational dropout). With `each_step`, a
    new mask is drawn at each step. Dropout of the candidate does not change the values that are
    already stored in the carry.

    Args:
      cell: the inner cell.
      x: dropout rate of the input; if the input is a NamedTuple such as `Timed`, of its field `x`.
      y: dropout rate of the output, but not of the carry.
      candidate: dropout rate of the candidate state, such as g of an LSTM or n of a GRU.
      each_step: whether to draw new masks at each step.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: a rate is outside [0, 1), or `each_step` is not a bool. `sample_noise` raises it
        if `candidate` is above 0 and the cell has no candidate state.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = Dropout(jrnn.GRU(hidden_size=4), x=0.2, candidate=0.25)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> _, ys = jrnn.unroll(cell, params, jnp.ones((9, 2, 3)), key=jax.random.key(1))
    >>> ys.shape
    (9, 2, 4)

    References:
      Gal and Ghahramani, 2016, A theoretically grounded application of dropout in recurrent neural
        networks (one mask per sequence).
      Semeniuta, Severyn and Barth, 2016, Recurrent dropout without memory loss (candidates).
    """

    x: float = 0.0
    y: float = 0.0
    candidate: float = 0.0
    each_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("x", "y", "candidate"):
            checks.rate(self.owner, name, getattr(self, name))
        checks.boolean(self.owner, "each_step", self.each_step)

    @property
    def forwards_update(self) -> bool:
        own = type(self)
        inherited = own.update is Dropout.update
        return inherited and own.transform_gates is Wrapper.transform_gates and not self.candidate

    def sample_own_noise(
        self, params: Params, xs: Inputs, noise: Any, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, DropoutMasks]:
        shapes = partial(self._candidate_and_output_shapes, leading)
        candidates, y = shapes(self.cell_params(params), add_noise(xs, noise))
        keys = iter(jax.random.split(key, 3))
        if self.candidate and not candidates:
            raise ValueError(
                f"{self.owner}: candidate must be 0 for a cell without a candidate state, got "
                f"candidate={self.candidate} for {self.cell!r}; set x or y instead"
            )
        x_leaves = self._leaves_to_drop(xs) if self.x else []
        return params, DropoutMasks(
            x=self._sample_masks(next(keys), self.x, x_leaves),
            candidate=self._sample_masks(
                next(keys), self.candidate, candidates if self.candidate else []
            ),
            y=self._sample_masks(next(keys), self.y, [y])[0] if self.y else None,
        )

    def _candidate_and_output_shapes(
        self, leading: tuple[int, ...], params: Params, xs: Inputs
    ) -> tuple[list[Any], Any]:
        """Returns the shapes of candidates and output, with leading axes `[T, *batch]`."""
        cell = self.cell
        dtype = widest_dtype(params, xs)  # only shapes are returned
        params, xs = jax.eval_shape(lambda *args: cast(args, dtype), params, xs)
        carry = jax.eval_shape(lambda p: cell.init_carry(p, leading), params)
        z = jax.eval_shape(cell.project, params, xs)
        u = jax.eval_shape(cell.recur, params, carry)
        candidates = taps.tapped_shapes(cell.update, "candidate", params, carry, z, u)
        return candidates, jax.eval_shape(cell.readout, params, carry, z)

    def _sample_masks(self, key: jax.Array, rate: float, like: list[Any]) -> list[jax.Array]:
        """Draws a mask for each array in `like`, `[T, *batch, ...]`; True keeps the value."""
        masks = []
        for n, leaf in enumerate(like):
            shape = leaf.shape if self.each_step else (1, *leaf.shape[1:])
            mask = sample_mask(jax.random.fold_in(key, n), 1 - rate, shape)
            masks.append(jnp.broadcast_to(mask, leaf.shape))
        return masks

    def _leaves_to_drop(self, x: Inputs) -> list[Any]:
        """Returns the leaves of the input with dropout: the whole input, or each field `x`."""
        named, _ = jax.tree_util.tree_flatten_with_path(x)
        return [leaf for path, leaf in named if _is_x(path)]

    def transform_input(
        self, params: Params, x: Inputs, noise: DropoutMasks | None
    ) -> tuple[Inputs, Any]:
        if noise is None:
            return x, None
        masks = iter(noise.x)
        drop = lambda path, a: _drop(next(masks), self.x, a) if _is_x(path) else a
        x = jax.tree_util.tree_map_with_path(drop, x) if noise.x else x
        return x, noise._replace(x=[])

    def transform_output(self, params: Params, y: Any, extra: DropoutMasks | None) -> Any:
        return y if extra is None or extra.y is None else _drop(extra.y, self.y, y)

    def update(self, params: Params, carry: Carry, z: WrapperGates, u: Gates) -> Carry:
        update = self._with_candidate_dropout(self.cell.update, z.extra)
        return update(self.cell_params(params), carry, z.inner, u)

    def coefficients(self, params: Params, z: WrapperGates) -> Coefficients | None:
        coefficients = self._with_candidate_dropout(self.cell.coefficients, z.extra)
        return coefficients(self.cell_params(params), z.inner)

    def _with_candidate_dropout(
        self, function: Callable[..., Any], masks: DropoutMasks | None
    ) -> Callable[..., Any]:
        """Returns a function with dropout of its candidates; unchanged without masks for them."""
        if masks is None or not masks.candidate:
            return function
        candidate_masks = iter(masks.candidate)
        drop = lambda value: _drop(next(candidate_masks), self.candidate, value)
        return taps.replace_taps(function, "candidate", drop)


@dataclass(frozen=True)
class WeightDrop(Wrapper):
    r"""DropConnect of recurrent weights, with one mask for all steps and sequences.

    ::

        w_hh = m * w_hh / (1 - rate),   m ~ Bernoulli(1 - rate)       with a key
        w_hh                                                          without a key

    Args:
      cell: the inner cell; if it is a transform, `names` also applies to the cell inside it.
      rate: dropout rate of the weights.
      names: names of the parameters with dropout; some of them may be absent.

    Raises:
      TypeError: `cell` is not a `Cell`.
      ValueError: `rate` is outside [0, 1), or `names` is not a tuple of str. `init` and
        `sample_noise` raise it if no parameter has one of the names.

    >>> import jax, jax.numpy as jnp, jrnn
    >>> cell = WeightDrop(jrnn.LSTM(hidden_size=4), rate=0.5)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> _, ys = jrnn.unroll(cell, params, jnp.ones((9, 2, 3)), key=jax.random.key(1))
    >>> ys.shape
    (9, 2, 4)

    References:
      Wan et al., 2013, Regularization of neural networks using DropConnect.
      Merity, Keskar and Socher, 2018, Regularizing and optimizing LSTM language models.
    """

    rate: float = 0.5
    names: tuple[str, ...] = ("w_hh",)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.rate(self.owner, "rate", self.rate)
        is_tuple = isinstance(self.names, tuple)
        if not is_tuple or not all(isinstance(name, str) for name in self.names):
            raise ValueError(
                f"{self.owner}: names must be a tuple of names such as ('w_hh',), got "
                f"{checks.describe(self.names)}"
            )

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> Params:
        params = self.cell.init(key, input_size, dtype)
        self._params_with_paths(params)
        return params

    def sample_own_noise(
        self, params: Params, xs: Inputs, noise: Any, leading: tuple[int, ...], key: jax.Array
    ) -> tuple[Params, None]:
        named, structure = self._params_with_paths(params), jax.tree.structure(params)
        keys = jax.random.split(key, len(named))
        drop = lambda k, w: _drop(sample_mask(k, 1 - self.rate, w.shape), self.rate, w)
        weights = [
            drop(k, w) if _field_name(path) in self.names else w
            for k, (path, w) in zip(keys, named, strict=True)
        ]
        return jax.tree.unflatten(structure, weights), None

    def _params_with_paths(self, params: Params) -> list[tuple[Any, Any]]:
        """Returns all parameters with their paths; raises ValueError if none has a given name."""
        named, _ = jax.tree_util.tree_flatten_with_path(params)
        existing = {_field_name(path) for path, _ in named}
        if existing.isdisjoint(self.names):
            raise ValueError(
                f"{self.owner}: names must contain a parameter of {self.cell!r}, got "
                f"{self.names!r}; choose from {', '.join(sorted(existing))}"
            )
        return named


def _drop(mask: jax.Array, rate: float, a: jax.Array) -> jax.Array:
    """Sets values to 0 where the mask is False, and divides the others by 1 - rate."""
    return jnp.where(mask, a / (1 - rate), jnp.zeros((), a.dtype))


def _is_x(path: tuple[Any, ...]) -> bool:
    """Returns whether a leaf of the input is the whole input or a field `x`."""
    return not path or _field_name(path) == "x"


def _field_name(path: tuple[Any, ...]) -> str:
    """Returns the last key of a path: the name of the field, or the key of the dict, of a leaf."""
    return jax.tree_util.keystr(path[-1:]).strip(".[]'")
