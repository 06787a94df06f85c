"""PPO for recurrent policies, in pure JAX: any cell of jrnn, or none.

The carry of the policy is reset where an episode begins: `starts[t]` is True if the observation of
step t is the first of an episode, which is the case if the action of step t - 1 ended one.

References:
  Schulman et al., 2017, Proximal policy optimization algorithms.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jrnn
from experiments.rl import tmaze

Params = Any
Carry = Any


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of PPO."""

    length: int = 10
    updates: int = 100
    num_envs: int = 32
    num_steps: int = 64
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    discount: float = 0.98
    gae_decay: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01


@dataclass(frozen=True)
class Policy:
    """A policy and a value function on top of a cell.

    Attributes:
      cell: the cell, with `width` outputs; None for a policy without memory.
      width: number of units of the layer before the cell, and of the cell.
    """

    cell: jrnn.Cell | None
    width: int = 32

    def init(self, key: jax.Array) -> Params:
        """Returns the parameters."""
        keys = jax.random.split(key, 4)
        dense = lambda k, rows, columns, scale: {
            "w": scale * jax.random.orthogonal(k, max(rows, columns))[:rows, :columns],
            "b": jnp.zeros(columns),
        }
        size = self.width
        params = {
            "input": dense(keys[0], tmaze.OBSERVATION_SIZE, self.width, 2**0.5),
            "actor": dense(keys[1], size, tmaze.NUM_ACTIONS, 0.01),
            "critic": dense(keys[2], size, 1, 1.0),
        }
        if self.cell is not None:
            params["cell"] = self.cell.init(keys[3], self.width)
        return params

    def init_carry(self, params: Params, batch: int) -> Carry:
        """Returns the carry at the beginning of an episode; None without a cell."""
        return None if self.cell is None else self.cell.init_carry(params["cell"], (batch,))

    def __call__(
        self, params: Params, carry: Carry, observations: jax.Array, starts: jax.Array
    ) -> tuple[Carry, jax.Array, jax.Array]:
        """Runs the policy over `[T, B]` observations.

        Args:
          params: the parameters.
          carry: the carry before the first step.
          observations: `[T, B, observation]`.
          starts: `[T, B]` bool, True where an episode begins.

        Returns:
          The carry after the last step, logits `[T, B, actions]` and values `[T, B]`.
        """
        apply = lambda name, xs: xs @ params[name]["w"] + params[name]["b"]
        ys = jnp.tanh(apply("input", observations))
        if self.cell is not None:
            carry, ys = jrnn.unroll(
                self.cell, params["cell"], ys, carry, resets=starts, engine="scan"
            )
        return carry, apply("actor", ys), apply("critic", ys)[..., 0]


class Rollout(NamedTuple):
    """Steps of all environments; leaves `[T, B, ...]`."""

    observations: jax.Array
    starts: jax.Array
    actions: jax.Array
    log_probabilities: jax.Array
    values: jax.Array
    rewards: jax.Array
    dones: jax.Array
    successes: jax.Array


class Collector(NamedTuple):
    """The environments between two updates.

    Attributes:
      states: the state of each environment.
      starts: `[B]` bool, whether the next observation begins an episode.
      carry: the carry of the policy.
    """

    states: tmaze.State
    starts: jax.Array
    carry: Carry


def train(policy: Policy, config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Trains a policy; a pure function, which `jax.vmap` maps over keys.

    Returns:
      For each update, `[updates]`: "success", the fraction of episodes that ended at the goal, and
      "reward", the mean reward of a step.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, _count_steps(config))),
    )
    key_params, key_envs, key_updates = jax.random.split(key, 3)
    params = policy.init(key_params)
    collector = Collector(
        jax.vmap(tmaze.reset)(jax.random.split(key_envs, config.num_envs)),
        jnp.ones(config.num_envs, bool),
        policy.init_carry(params, config.num_envs),
    )

    def update(state: Any, key: jax.Array) -> Any:
        params, optimizer_state, collector = state
        key_collect, key_order = jax.random.split(key)
        first_carry = collector.carry
        collector, rollout = _collect(policy, config, params, collector, key_collect)
        last = jax.vmap(tmaze.observe, (0, None))(collector.states, config.length)
        _, _, values = policy(params, collector.carry, last[None], collector.starts[None])
        advantages = _advantages(config, rollout, values[0])
        batch = rollout, advantages, advantages + rollout.values

        def train_on(state: Any, columns: jax.Array) -> Any:
            params, optimizer_state = state
            part = jax.tree.map(lambda leaf: leaf[:, columns], batch)
            carry = jax.tree.map(lambda leaf: leaf[columns], first_carry)
            grads = jax.grad(_loss)(params, policy, config, carry, *part)
            updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
            return (optax.apply_updates(params, updates), optimizer_state), None

        orders = jax.vmap(lambda k: jax.random.permutation(k, config.num_envs))(
            jax.random.split(key_order, config.epochs)
        )
        columns = orders.reshape(config.epochs * config.minibatches, -1)
        (params, optimizer_state), _ = jax.lax.scan(train_on, (params, optimizer_state), columns)
        episodes = jnp.maximum(rollout.dones.sum(), 1)
        metrics = {
            "success": rollout.successes.sum() / episodes,
            "reward": rollout.rewards.mean(),
        }
        return (params, optimizer_state, collector), metrics

    state = params, optimizer.init(params), collector
    _, metrics = jax.lax.scan(update, state, jax.random.split(key_updates, config.updates))
    return metrics


def _count_steps(config: Config) -> int:
    return config.updates * config.epochs * config.minibatches


def _collect(
    policy: Policy, config: Config, params: Params, collector: Collector, key: jax.Array
) -> tuple[Collector, Rollout]:
    """Runs the policy in all environments for `num_steps` steps."""

    def act(collector: Collector, key: jax.Array) -> tuple[Collector, Rollout]:
        key_action, key_envs = jax.random.split(key)
        states, starts, carry = collector
        observations = jax.vmap(tmaze.observe, (0, None))(states, config.length)
        carry, logits, values = policy(params, carry, observations[None], starts[None])
        actions = jax.random.categorical(key_action, logits[0])
        keys = jax.random.split(key_envs, config.num_envs)
        made = jax.vmap(tmaze.step, (0, 0, 0, None))(keys, states, actions, config.length)
        rollout = Rollout(
            observations,
            starts,
            actions,
            _log_probability(logits[0], actions),
            values[0],
            made.reward,
            made.done,
            made.success,
        )
        return Collector(made.state, made.done, carry), rollout

    return jax.lax.scan(act, collector, jax.random.split(key, config.num_steps))


def _log_probability(logits: jax.Array, actions: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]


def _advantages(config: Config, rollout: Rollout, last_values: jax.Array) -> jax.Array:
    """Returns generalized advantage estimates, `[T, B]`."""

    def accumulate(carry: Any, step: Any) -> Any:
        advantage, later = carry
        reward, done, value = step
        continues = 1.0 - done
        error = reward + config.discount * later * continues - value
        advantage = error + config.discount * config.gae_decay * continues * advantage
        return (advantage, value), advantage

    steps = rollout.rewards, rollout.dones, rollout.values
    start = jnp.zeros_like(last_values), last_values
    return jax.lax.scan(accumulate, start, steps, reverse=True)[1]


def _loss(
    params: Params,
    policy: Policy,
    config: Config,
    carry: Carry,
    rollout: Rollout,
    advantages: jax.Array,
    returns: jax.Array,
) -> jax.Array:
    """Returns the clipped loss of the policy, plus those of the values and the entropy."""
    _, logits, values = policy(params, carry, rollout.observations, rollout.starts)
    ratio = jnp.exp(_log_probability(logits, rollout.actions) - rollout.log_probabilities)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    actor = -jnp.minimum(ratio * advantages, clipped * advantages).mean()
    critic = jnp.square(values - returns).mean()
    probabilities = jax.nn.softmax(logits)
    entropy = -(probabilities * jax.nn.log_softmax(logits)).sum(-1).mean()
    return actor + config.value_weight * critic - config.entropy_weight * entropy
