"""The T-maze against a slow loop, and that PPO resets the carry where an episode begins."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import jrnn
from experiments.rl import ppo, run, tmaze

LENGTH = 3


def play(actions, goal):
    """Returns rewards, ends and observations of one episode, by hand."""
    position, rows = 0, []
    for time, action in enumerate(actions):
        sides = [float(goal == side) for side in (0, 1)] if time == 0 else [0.0, 0.0]
        observation = [*sides, float(position < LENGTH), float(position == LENGTH)]
        if position == LENGTH and action > 0:
            rows.append((observation, 4.0 if action - 1 == goal else -0.1, True))
        elif position < LENGTH and action == 0:
            position += 1
            rows.append((observation, 0.0, time + 1 == 2 * LENGTH + 2))
        else:
            rows.append((observation, -0.1, time + 1 == 2 * LENGTH + 2))
        if rows[-1][2]:
            break
    return rows


def test_environment_matches_a_loop():
    rng = np.random.default_rng(0)
    step = jax.jit(lambda *args: tmaze.step(*args, LENGTH))
    for seed in range(20):
        goal = seed % 2
        state = tmaze.State(*(jnp.asarray(value) for value in (goal, 0, 0)))
        actions = rng.choice(3, p=[0.7, 0.15, 0.15], size=20)
        for action, (observation, reward, done) in zip(actions, play(actions, goal), strict=False):
            np.testing.assert_array_equal(tmaze.observe(state, LENGTH), observation)
            made = step(jax.random.key(seed), state, jnp.asarray(action))
            assert (float(made.reward), bool(made.done)) == (np.float32(reward), done)
            state = made.state
        assert (int(state.position), int(state.time)) == (0, 0)  # of the next episode


def test_policy_of_a_window_is_that_of_single_steps():
    """The carry at the start of a window and the starts of episodes give the collected values."""
    config = ppo.Config(length=2, num_envs=3, num_steps=9)
    policy = ppo.Policy(jrnn.GRU(4), width=4)
    params = policy.init(jax.random.key(0))
    collector = ppo.Collector(
        jax.vmap(tmaze.reset)(jax.random.split(jax.random.key(1), 3)),
        jnp.ones(3, bool),
        policy.init_carry(params, 3),
    )
    collect = jax.jit(lambda *args: ppo._collect(policy, config, *args))
    collector, _ = collect(params, collector, jax.random.key(2))
    later, rollout = collect(params, collector, jax.random.key(3))
    assert rollout.starts.any() and not rollout.starts.all()
    np.testing.assert_array_equal(rollout.starts[1:], rollout.dones[:-1])
    carry, _, values = policy(params, collector.carry, rollout.observations, rollout.starts)
    np.testing.assert_allclose(values, rollout.values, atol=1e-6)
    np.testing.assert_allclose(carry, later.carry, atol=1e-6)
    # After a start, the values are those of an episode that begins there.
    t, b = np.argwhere(np.asarray(rollout.starts))[-1]
    alone = rollout.observations[t:, b : b + 1], rollout.starts[t:, b : b + 1]
    _, _, values = policy(params, policy.init_carry(params, 1), *alone)
    np.testing.assert_allclose(values[:, 0], rollout.values[t:, b], atol=1e-6)


def test_advantages_match_a_loop():
    rng = np.random.default_rng(1)
    config = ppo.Config()
    rewards, values = rng.normal(size=(2, 6, 2)).astype(np.float32)
    dones = rng.random((6, 2)) < 0.3
    last = rng.normal(size=2).astype(np.float32)
    expected = np.zeros((6, 2))
    for t in reversed(range(6)):
        later = last if t == 5 else values[t + 1]
        following = 0 if t == 5 else expected[t + 1]
        error = rewards[t] + config.discount * later * ~dones[t] - values[t]
        expected[t] = error + config.discount * config.gae_decay * ~dones[t] * following
    empty = jnp.zeros((6, 2))
    rollout = ppo.Rollout(
        empty, empty, empty, empty, *map(jnp.asarray, (values, rewards, dones)), empty
    )
    np.testing.assert_allclose(ppo._advantages(config, rollout, last), expected, atol=1e-5)


def test_study_writes_results_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "POLICIES", {"GRU": ppo.Policy(jrnn.GRU(4), width=4)})
    flags = "--updates 2 --num-envs 4 --num-steps 4 --epochs 1 --seeds 2 --out".split()
    run.main([*flags, str(tmp_path)])
    result = json.loads((tmp_path / "rl.json").read_text("utf-8"))
    assert np.shape(result["policies"]["GRU"]["success"]) == (2, 2)
    assert (tmp_path / "rl.png").stat().st_size > 10_000


def test_saved_results_show_that_memory_solves_the_task():
    result = json.loads((run.HERE / "results" / "rl.json").read_text("utf-8"))
    final = {name: row["final"] for name, row in result["policies"].items()}
    assert min(min(final[name]) for name in ("LSTM", "GRU", "minGRU")) > 0.99
    assert 0.4 < np.mean(final["no memory"]) < 0.6
