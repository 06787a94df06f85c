"""The optimizer of a config."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrnn.train import Optimizer


def test_schedules_follow_their_equations():
    steps, peak = 100, 0.3
    for name, decay in {
        "constant": lambda s: 1.0,
        "cosine": lambda s: (1 + np.cos(np.pi * s)) / 2,
        "linear": lambda s: 1 - s,
    }.items():
        for warmup in (0.0, 0.2):
            rate = Optimizer(peak, schedule=name, warmup=warmup).make_schedule(steps)
            warmup_steps = round(warmup * steps)
            for t in (0, 3, 20, 21, 60, 100):
                fraction = (t - warmup_steps) / (steps - warmup_steps)
                expected = peak * (t / warmup_steps if t < warmup_steps else decay(fraction))
                np.testing.assert_allclose(rate(t), expected, rtol=1e-5, atol=1e-7)


def first_step(optimizer, gradient):
    transformation = optimizer.build(10)
    params = jnp.ones(2)
    updates, _ = transformation.update(gradient, transformation.init(params), params)
    return np.asarray(updates)


def test_gradients_are_clipped_by_their_global_norm():
    gradient = jnp.array([30.0, 40.0])
    sgd = Optimizer(0.1, "sgd", clip_norm=5.0)
    np.testing.assert_allclose(first_step(sgd, gradient), [-0.3, -0.4], rtol=1e-6)
    unclipped = Optimizer(0.1, "sgd", clip_norm=None)
    np.testing.assert_allclose(first_step(unclipped, gradient), [-3.0, -4.0], rtol=1e-6)


def test_each_algorithm_matches_optax():
    gradient = jnp.array([0.3, -0.4])
    for optimizer, reference in {
        Optimizer(0.1, "adam"): optax.adam(0.1),
        Optimizer(0.1, "adamw", weight_decay=0.5): optax.adamw(0.1, weight_decay=0.5),
        Optimizer(0.1, "rmsprop", momentum=0.9): optax.rmsprop(0.1, momentum=0.9),
        Optimizer(0.1, "sgd", momentum=0.9): optax.sgd(0.1, momentum=0.9),
    }.items():
        params = jnp.ones(2)
        expected, _ = reference.update(gradient, reference.init(params), params)
        np.testing.assert_allclose(first_step(optimizer, gradient), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "adan"}, "did you mean 'adam'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number above 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be a finite number above 0"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0"),
        ({"weight_decay": 0.1}, "needs algorithm='adamw'"),
        ({"momentum": 0.9}, "needs algorithm='sgd' or 'rmsprop'"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**options)
