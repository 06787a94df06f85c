"""Streaming inference: a network runs one time step per call."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from jrnn import checks
from jrnn.cell import Carry, Inputs
from jrnn.nn.heads import Body, Classifier, SequenceToSequence
from jrnn.signatures import explain_signature


class Stream:
    """A network in evaluation mode with its current carry; created by `stream`."""

    def __init__(self, model: Body | SequenceToSequence, batch_size: int):
        """Copies the weights of the model; see `stream`."""
        body = model.body if isinstance(model, SequenceToSequence) else model
        is_recurrent = isinstance(body, nnx.Module) and getattr(body, "causal", None) is not None
        if isinstance(model, Classifier) or not is_recurrent:
            raise TypeError(
                "stream: model must be a module with an output for each step, such as an RNN or a "
                f"SequenceToSequence, got {checks.describe(model)}"
            )
        if not body.causal:
            raise ValueError(
                "stream: model must be causal, got a model whose outputs may depend on later "
                "inputs; use layers that are neither reversed nor bidirectional"
            )
        batch_size = checks.positive_int("stream", "batch_size", batch_size)
        graphdef, state = nnx.split(model)
        # jit dispatches a list of arrays faster than a flax state.
        self._leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.copy, state))
        axis = 0 if body.time_major else 1
        self._all_rows, self._no_rows = jnp.ones(batch_size, bool), jnp.zeros(batch_size, bool)
        self._resets = self._all_rows
        self._carry: Carry = None

        def run(leaves: list[jax.Array], carry: Carry, x: Inputs, resets: jax.Array):
            _check_step(model, body, x, batch_size)
            eval_model = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
            eval_model.eval()
            xs = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), x)
            carry, ys = eval_model(xs, carry, resets=jnp.expand_dims(resets, axis))
            return carry, jnp.squeeze(ys, axis)

        self._run = jax.jit(run)
        self._carry_shapes = lambda x: jax.eval_shape(run, self._leaves, None, x, self._all_rows)[0]

    @property
    def carry(self) -> Carry:
        """The carry after the previous step, leaves `[B, ...]`.

        It is None until it is set or the first step runs. It can be set to any carry of the
        network, such as the final carry of a prompt; the next step then starts from that carry, and
        earlier calls of `reset` have no effect. If it is set to None, the next step starts from the
        initial carry of the network.
        """
        return self._carry

    @carry.setter
    def carry(self, carry: Carry) -> None:
        self._carry = carry
        self._resets = self._all_rows if carry is None else self._no_rows

    def step(self, x: Inputs) -> jax.Array:
        """Takes one step.

        Args:
          x: inputs of one step as the network expects them, without a time axis: `[B, input]`,
            tokens `[B]`, or a pytree.

        Returns:
          Outputs `[B, output]`, equal to the outputs for the whole sequence at this step.

        Raises:
          ValueError: the first axis of a leaf of `x` does not have size `batch_size`, or `x` has an
            axis of time.
        """
        if self._carry is None:
            x = jax.tree.map(jnp.asarray, x)
            self._carry = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self._carry_shapes(x))
        self._carry, y = self._run(self._leaves, self._carry, x, self._resets)
        self._resets = self._no_rows
        return y

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Resets the carry before the next step.

        Args:
          rows: `[B]` bool, True for the sequences to reset; by default all.

        Raises:
          ValueError: `rows` is not bool of shape `[B]`.
        """
        selected = self._all_rows if rows is None else jnp.asarray(rows)
        if selected.shape != self._all_rows.shape or selected.dtype != bool:
            raise ValueError(
                f"stream: rows must be bool of shape (batch,) = {self._all_rows.shape}, got "
                f"{selected.dtype} of {selected.shape}"
            )
        self._resets = self._resets | selected


def _check_step(model: Body | SequenceToSequence, body: Body, x: Inputs, batch_size: int) -> None:
    """Raises ValueError unless the inputs are those of one step of `batch_size` sequences."""
    embedding = getattr(model, "embedding", None)
    step = body.step_shape(batch_size) if embedding is None else None
    if isinstance(embedding, nnx.Embed):
        step = (batch_size,)
    if step is not None and jnp.ndim(x) == len(step) + 1:
        raise ValueError(
            f"stream: x must be the inputs of one step, of shape {step}, got shape "
            f"{jnp.shape(x)}; pass the steps of a sequence one by one"
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    if any(shape[:1] != (batch_size,) for shape in shapes):
        raise ValueError(
            f"stream: leaves of x must have a first axis of batch_size={batch_size}, got shapes "
            f"{checks.shorten(shapes)}; set batch_size when calling jrnn.stream"
        )


@explain_signature()
def stream(model: Body | SequenceToSequence, batch_size: int = 1) -> Stream:
    """Returns a `Stream`, which runs a network one time step at a time.

    The outputs equal those of the network for the whole sequence. The current weights are copied,
    so later training does not affect the stream. The copy runs in evaluation mode, and each step
    calls one compiled function.

    Args:
      model: a causal `RNN`, `StackedRNN`, `LSTM`, `GRU` or `SequenceToSequence`.
      batch_size: number of sequences that run in parallel.

    Returns:
      The `Stream`: `step(x)` takes one step; after `reset()`, the next step starts from the initial
      carry.

    Raises:
      TypeError: the model is not a recurrent module, or has no output for each step, such as a
        `Classifier`.
      ValueError: the model is not causal, or `batch_size` is below 1.

    >>> import jrnn
    >>> model = jrnn.nn.RNN(jrnn.GRU(4), 3, rngs=nnx.Rngs(0))
    >>> xs = jnp.ones((1, 5, 3))
    >>> streamed = stream(model)
    >>> ys = [streamed.step(xs[:, t]) for t in range(5)]
    >>> bool(jnp.allclose(jnp.stack(ys, axis=1), model(xs)[1], atol=1e-6))
    True
    """
    return Stream(model, batch_size)
