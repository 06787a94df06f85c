"""The closed-form continuous-time network: irregular time steps without an ODE solver."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add
from jrnn.cell import Cell, Timed
from jrnn.cells.common import affine, split_gates
from jrnn.taps import tap

MODES = ("default", "no_gate")


class CfCParams(NamedTuple):
    """Weights of the backbone, and of the four heads in the order ff1, ff2, time_a, time_b.

    The heads are the linear layers that compute the pre-activations of f1, f2 and t.

    Without a backbone, w_ih, w_hh and b are the weights of the heads, with units = 4·hidden, and
    w_heads and b_heads are None.
    """

    w_ih: jax.Array  # [input, units]
    w_hh: jax.Array  # [hidden, units]
    b: jax.Array  # [units]
    w_heads: Any = None  # [units, 4·hidden]
    b_heads: Any = None  # [4·hidden]


class CfCGates(NamedTuple):
    """Pre-activations of the heads, each `[..., hidden]`."""

    ff1: jax.Array
    ff2: jax.Array
    time_a: jax.Array
    time_b: jax.Array


class CfCInputs(NamedTuple):
    """The part of the pre-activations that depends on the input, and the time steps.

    Attributes:
      a: pre-activations of the backbone `[..., backbone_units]`; without a backbone, `CfCGates`.
      dt: time steps `[..., hidden]`, equal for all units.
    """

    a: jax.Array | CfCGates
    dt: jax.Array


@dataclass(frozen=True)
class CfC(Cell):
    r"""The CfC: two candidates, and a gate that interpolates between them as a function of time.

    ::

        v = 1.7159 tanh(0.666 (W [x, h] + b))               backbone; v = [x, h] without one
        f1, f2 = tanh(W_1 v + b_1), tanh(W_2 v + b_2)       candidates ff1 and ff2
        t = sigmoid((W_a v + b_a) * dt + W_b v + b_b)       gate, from time_a and time_b
        h' = (1 - t) * f1 + t * f2,   y = h'                mode "default"
        h' = f1 + t * f2                                    mode "no_gate"

    These equations follow the authors' code. The paper has sigmoid(-f dt) in place of 1 - t: its
    gate has no offset W_b v + b_b, and its f corresponds to W_a v + b_a.

    The input is an array, for which dt = 1, or `Timed(x, dt)` for samples at irregular times. With
    a backbone, `update` computes the matrix products with v, so it is not elementwise. Without a
    backbone `update` is elementwise. All weights are Glorot-uniform; the fan-in of W is
    input + hidden.

    Args:
      hidden_size: number of units.
      backbone_units: width of the backbone, which has one layer; None for no backbone.
      mode: "default" or "no_gate", as in the equations.

    Raises:
      ValueError: `hidden_size` or `backbone_units` is not a positive int, or `mode` is unknown.
        `project` raises it if `dt` does not have the leading axes of `x`.

    >>> import jax, jax.numpy as jnp
    >>> cell = CfC(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> x = Timed(jnp.ones((2, 3)), dt=jnp.array([0.1, 2.5]))
    >>> h, y = cell.step(params, cell.init_carry(params, (2,)), x)
    >>> h.shape
    (2, 4)

    References:
      Hasani et al., 2022, Closed-form continuous-time neural networks.
    """

    hidden_size: int
    _: KW_ONLY
    backbone_units: int | None = 128
    mode: Literal["default", "no_gate"] = "default"

    def __post_init__(self) -> None:
        checks.positive_int("CfC", "hidden_size", self.hidden_size)
        if self.backbone_units is not None:
            checks.positive_int("CfC", "backbone_units", self.backbone_units)
        checks.one_of("CfC", "mode", self.mode, MODES)

    @property
    def input_types(self) -> tuple[type, ...]:
        return (Timed,)

    def init(self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32) -> CfCParams:
        hidden, units = self.hidden_size, self.backbone_units
        key_in, key_heads = jax.random.split(key)
        width, blocks = (hidden, 4) if units is None else (units, 1)
        w = initializers.input_weights(key_in, input_size + hidden, width, blocks, dtype)
        params = CfCParams(
            w_ih=w[:input_size],
            w_hh=w[input_size:],
            b=jnp.zeros((blocks * width,), dtype),
        )
        if units is None:
            return params
        w_heads = initializers.input_weights(key_heads, units, hidden, 4, dtype)
        return params._replace(w_heads=w_heads, b_heads=jnp.zeros((4 * hidden,), dtype))

    def init_carry(self, params: CfCParams, batch_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*batch_shape, self.hidden_size), params.w_hh.dtype)

    def project(self, params: CfCParams, x: jax.Array | Timed) -> CfCInputs:
        features = x.x if isinstance(x, Timed) else x
        a = affine(self, features, params.w_ih, params.b)
        dt = _expand_time_steps(x) if isinstance(x, Timed) else jnp.ones((1,))
        # Broadcast over units, so that all arrays in `update` have the same shape.
        dt = jnp.broadcast_to(dt, (*features.shape[:-1], self.hidden_size))
        return CfCInputs(self._split_heads(a), dt.astype(a.dtype))

    def recur(self, params: CfCParams, carry: jax.Array) -> jax.Array | CfCGates:
        return self._split_heads(carry @ params.w_hh)

    def _split_heads(self, a: jax.Array) -> jax.Array | CfCGates:
        """Splits pre-activations into heads if the cell has no backbone."""
        return split_gates(a, CfCGates, CfCGates._fields) if self.backbone_units is None else a

    def update(
        self, params: CfCParams, carry: jax.Array, z: CfCInputs, u: jax.Array | CfCGates
    ) -> jax.Array:
        a = _compute_heads(params, jax.tree.map(jnp.add, z.a, u))
        ff1 = tap("ff1", jnp.tanh(a.ff1))
        ff2 = tap("ff2", jnp.tanh(a.ff2))
        t = tap("t", sigmoid(a.time_a * z.dt + a.time_b))
        return ff1 + t * ff2 if self.mode == "no_gate" else (1 - t) * ff1 + t * ff2


def _compute_heads(params: CfCParams, a: jax.Array | CfCGates) -> CfCGates:
    """Returns the pre-activations of the heads, after the backbone if the cell has one."""
    if isinstance(a, CfCGates):
        return a
    v = 1.7159 * jnp.tanh(0.666 * a)
    return split_gates(add(v @ params.w_heads, params.b_heads), CfCGates, CfCGates._fields)


def _expand_time_steps(timed: Timed) -> jax.Array:
    """Validates the shape of dt, and appends an axis: `[...]` becomes `[..., 1]`."""
    if jnp.shape(timed.dt) != timed.x.shape[:-1]:
        raise ValueError(
            f"CfC: dt must have the leading axes of x, {timed.x.shape[:-1]}, got shape "
            f"{jnp.shape(timed.dt)}; pass one time step for each input"
        )
    return jnp.asarray(timed.dt)[..., None]
