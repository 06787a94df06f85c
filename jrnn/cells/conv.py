"""The convolutional LSTM: states have spatial axes, and gates are computed by convolutions."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid
from jax.typing import DTypeLike

from jrnn import checks, initializers
from jrnn.broadcasting import add, multiply
from jrnn.cell import Cell
from jrnn.cells.common import split_gates
from jrnn.cells.lstm import LSTMCarry, LSTMGates
from jrnn.dtypes import promote_dtypes
from jrnn.taps import tap

GATES = ("i", "f", "g", "o")


class ConvLSTMParams(NamedTuple):
    """Kernels, with the gates concatenated in the order i, f, g, o."""

    w_ih: jax.Array  # [*kernel, input, 4·hidden]
    w_hh: jax.Array  # [*kernel, hidden, 4·hidden]
    b: jax.Array  # [4·hidden]
    p_i: jax.Array | None = None  # [hidden], None with peepholes=False
    p_f: jax.Array | None = None  # [hidden]
    p_o: jax.Array | None = None  # [hidden]


@dataclass(frozen=True)
class ConvLSTM(Cell):
    r"""The LSTM with convolutions over one, two or three spatial axes in place of matrix products.

    ::

        f = sigmoid(W_f ∗ x + U_f ∗ h + b_f  [+ p_f * c])   forget gate
        i = sigmoid(W_i ∗ x + U_i ∗ h + b_i  [+ p_i * c])   input gate
        g = tanh(W_g ∗ x + U_g ∗ h + b_g)                   candidate
        c' = f * c + i * g                                  cell state
        o = sigmoid(W_o ∗ x + U_o ∗ h + b_o  [+ p_o * c'])  output gate
        h' = o * tanh(c'),   y = h'

    ∗ is a convolution over the spatial axes with zero padding, which preserves the spatial shape.
    Kernels are not flipped, as in `jax.lax.conv`. Inputs are `[..., *spatial, input]`, and
    outputs, h and c are `[..., *spatial, hidden]`: channels are last. `peepholes` adds the terms
    in brackets. They have one weight for each channel; in the paper they have one for each channel
    and position.

    Args:
      hidden_size: number of channels of the state.
      spatial_shape: sizes of the one to three spatial axes.
      kernel_size: odd size of the kernels along each spatial axis.
      forget_bias: initial value of b_f; 1 keeps the forget gate open at initialization.
      peepholes: whether the gates i, f and o depend on the cell state; initial weights are 0.

    Raises:
      ValueError: `hidden_size` is not a positive int, `spatial_shape` is not a tuple of one to
        three positive ints, `kernel_size` is not a positive odd int, `forget_bias` is not a finite
        number, or `peepholes` is not a bool. `project` raises it if x has another spatial shape or
        input size.

    >>> import jax, jax.numpy as jnp
    >>> cell = ConvLSTM(hidden_size=4, spatial_shape=(6, 5))
    >>> params = cell.init(jax.random.key(0), input_size=3)
    >>> carry, y = cell.step(params, cell.init_carry(params, (2,)), jnp.ones((2, 6, 5, 3)))
    >>> y.shape, carry.c.shape
    ((2, 6, 5, 4), (2, 6, 5, 4))

    References:
      Shi et al., 2015, Convolutional LSTM network: a machine learning approach for precipitation
      nowcasting.
    """

    hidden_size: int
    _: KW_ONLY
    spatial_shape: tuple[int, ...] = (8, 8)
    kernel_size: int = 3
    forget_bias: float = 1.0
    peepholes: bool = False

    def __post_init__(self) -> None:
        checks.positive_int("ConvLSTM", "hidden_size", self.hidden_size)
        checks.finite_number("ConvLSTM", "forget_bias", self.forget_bias)
        if not isinstance(self.spatial_shape, tuple) or not 1 <= len(self.spatial_shape) <= 3:
            raise ValueError(
                "ConvLSTM: spatial_shape must be a tuple of one to three sizes such as (8, 8), got "
                f"{self.spatial_shape!r}"
            )
        for size in self.spatial_shape:
            checks.positive_int("ConvLSTM", "each size of spatial_shape", size)
        checks.positive_int("ConvLSTM", "kernel_size", self.kernel_size)
        if self.kernel_size % 2 == 0:
            raise ValueError(
                "ConvLSTM: kernel_size must be odd, so that a kernel has a center, got "
                f"{self.kernel_size}; use {self.kernel_size + 1}"
            )
        checks.boolean("ConvLSTM", "peepholes", self.peepholes)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Sizes of the kernels along the spatial axes."""
        return (self.kernel_size,) * len(self.spatial_shape)

    def init(
        self, key: jax.Array, input_size: int, dtype: DTypeLike = jnp.float32
    ) -> ConvLSTMParams:
        key_ih, key_hh = jax.random.split(key)
        glorot, orthogonal = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.orthogonal()
        hidden, zeros = self.hidden_size, jnp.zeros((self.hidden_size,), dtype)
        p_i, p_f, p_o = (jnp.zeros_like(zeros) if self.peepholes else None for _ in "ifo")
        return ConvLSTMParams(
            w_ih=self._init_kernels(glorot, key_ih, input_size, dtype),
            w_hh=self._init_kernels(orthogonal, key_hh, hidden, dtype),
            b=jnp.concatenate([zeros, jnp.full((hidden,), self.forget_bias, dtype), zeros, zeros]),
            p_i=p_i,
            p_f=p_f,
            p_o=p_o,
        )

    def _init_kernels(
        self, initializer: initializers.Initializer, key: jax.Array, channels: int, dtype: DTypeLike
    ) -> jax.Array:
        """Draws kernels `[*kernel, channels, 4·hidden]`, each gate separately."""
        shape, hidden = (*self.kernel_shape, channels), self.hidden_size
        draw = lambda k, flat_shape, t: initializer(k, (*shape, hidden), t).reshape(flat_shape)
        weights = initializers.per_gate(draw, key, math.prod(shape), hidden, len(GATES), dtype)
        return weights.reshape(*shape, len(GATES) * hidden)

    def init_carry(self, params: ConvLSTMParams, batch_shape: tuple[int, ...]) -> LSTMCarry:
        shape = (*batch_shape, *self.spatial_shape, self.hidden_size)
        zeros = jnp.zeros(shape, params.w_hh.dtype)
        return LSTMCarry(h=zeros, c=zeros)

    def inputs(
        self, input_size: int, batch_shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        return jnp.zeros((*batch_shape, *self.spatial_shape, input_size), dtype)

    def project(self, params: ConvLSTMParams, x: jax.Array) -> LSTMGates:
        source = "input_size of the parameters"
        checks.last_axis("ConvLSTM", "x", x, params.w_ih.shape[-2], source)
        axes = len(self.spatial_shape) + 1
        if x.shape[-axes:-1] != self.spatial_shape:
            raise ValueError(
                f"ConvLSTM: x must have shape [..., *spatial_shape, input] with spatial_shape "
                f"{self.spatial_shape}, got shape {x.shape}"
            )
        return split_gates(add(convolve(x, params.w_ih), params.b), LSTMGates, GATES)

    def recur(self, params: ConvLSTMParams, carry: LSTMCarry) -> LSTMGates:
        return split_gates(convolve(carry.h, params.w_hh), LSTMGates, GATES)

    def update(
        self, params: ConvLSTMParams, carry: LSTMCarry, z: LSTMGates, u: LSTMGates
    ) -> LSTMCarry:
        a = jax.tree.map(jnp.add, z, u)
        peephole = lambda p, c: 0 if p is None else multiply(p, c)
        i = tap("i", sigmoid(a.i + peephole(params.p_i, carry.c)))
        f = tap("f", sigmoid(a.f + peephole(params.p_f, carry.c)))
        g = tap("g", jnp.tanh(a.g), role="candidate")
        c = f * carry.c + i * g
        o = tap("o", sigmoid(a.o + peephole(params.p_o, c)))
        h = o * jnp.tanh(tap(None, c, role="cell_state"))
        return LSTMCarry(h, c)

    def readout(self, params: ConvLSTMParams, carry: LSTMCarry, z: LSTMGates) -> jax.Array:
        return carry.h


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves over the spatial axes, with zero padding and without flipping the kernel.

    Args:
      x: `[..., *spatial, channels]`.
      kernel: `[*kernel, channels, outputs]`.

    Returns:
      `[..., *spatial, outputs]`.
    """
    axes = kernel.ndim - 2
    leading, dtype = x.shape[: -axes - 1], promote_dtypes(x.dtype, kernel.dtype)
    spatial = "DHW"[-axes:]
    out = lax.conv_general_dilated(
        x.reshape(math.prod(leading), *x.shape[len(leading) :]).astype(dtype),
        kernel.astype(dtype),
        window_strides=(1,) * axes,
        padding="SAME",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    return out.reshape(*leading, *out.shape[1:])
