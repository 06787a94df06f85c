"""The T-maze: a task that needs memory, as pure functions.

At the first step the agent sees on which side the goal is. It walks along a corridor, in which it
sees only that it is in a corridor, and turns at the junction. A policy without memory turns to the
right side in half of the episodes.

References:
  Bakker, 2001, Reinforcement learning with long short-term memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

OBSERVATION_SIZE = 4
"""The sides of the goal (two entries, at the first step only), corridor, junction."""
NUM_ACTIONS = 3
"""Forward, left, right."""
GOAL_REWARD = 4.0
MISS_REWARD = -0.1
"""Reward of the wrong side, of turns in the corridor, and of walking on at the junction."""


class State(NamedTuple):
    """The state of an environment.

    Attributes:
      goal: 0 for left, 1 for right.
      position: number of steps along the corridor.
      time: number of actions in this episode.
    """

    goal: jax.Array
    position: jax.Array
    time: jax.Array


class Transition(NamedTuple):
    """What an action leads to.

    Attributes:
      state: the state for the next action, the first of an episode if the last has ended.
      reward: the reward of the action.
      done: whether the action ended the episode; the next observation then begins another one.
      success: whether the action reached the goal.
    """

    state: State
    reward: jax.Array
    done: jax.Array
    success: jax.Array


def reset(key: jax.Array) -> State:
    """Returns the first state of an episode."""
    zero = jnp.zeros((), jnp.int32)
    return State(jax.random.bernoulli(key).astype(jnp.int32), zero, zero)


def observe(state: State, length: int) -> jax.Array:
    """Returns the observation, `[OBSERVATION_SIZE]`."""
    is_first, at_junction = state.time == 0, state.position == length
    sides = jax.nn.one_hot(state.goal, 2) * is_first
    return jnp.append(sides, jnp.array([~at_junction, at_junction], jnp.float32))


def step(key: jax.Array, state: State, action: jax.Array, length: int) -> Transition:
    """Takes an action; an episode ends at the goal, at the wrong side, or after 2 length + 2.

    Args:
      key: a key for the first state of the next episode.
      state: the state.
      action: 0 for forward, 1 for left, 2 for right.
      length: length of the corridor.
    """
    at_junction, turns = state.position == length, action > 0
    success = at_junction & turns & (action - 1 == state.goal)
    walks = ~turns & ~at_junction
    reward = jnp.where(success, GOAL_REWARD, jnp.where(walks, 0.0, MISS_REWARD))
    time = state.time + 1
    done = (at_junction & turns) | (time >= 2 * length + 2)
    later = State(state.goal, state.position + walks, time)
    state = jax.tree.map(lambda new, old: jnp.where(done, new, old), reset(key), later)
    return Transition(state, reward, done, success)
