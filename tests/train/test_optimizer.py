"""The optimizer of a config."""

import math

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


def test_any_algorithm_of_optax_matches_optax():
    gradient, params = jnp.array([0.3, -0.4]), jnp.ones(2)
    for optimizer, reference in {
        Optimizer(0.1, "lion", options=(("b1", 0.8),)): optax.lion(0.1, b1=0.8, weight_decay=0.0),
        Optimizer(0.1, "lamb", weight_decay=0.5): optax.lamb(0.1, weight_decay=0.5),
        Optimizer(0.1, "sgd", momentum=0.9, options=(("nesterov", True),)): optax.sgd(
            0.1, momentum=0.9, nesterov=True
        ),
        Optimizer(0.1, "sm3", clip_norm=None): optax.sm3(0.1),  # does not accept a schedule
    }.items():
        expected, _ = reference.update(gradient, reference.init(params), params)
        np.testing.assert_allclose(first_step(optimizer, gradient), expected, rtol=1e-6)


def test_any_schedule_of_optax_matches_optax():
    steps = 100
    for optimizer, reference in {
        Optimizer(
            0.3, schedule="exponential_decay", schedule_options=(("decay_rate", 0.5),)
        ): optax.exponential_decay(0.3, steps, 0.5),
        Optimizer(
            0.3,
            schedule="warmup_cosine_decay_schedule",
            schedule_options=(("warmup_steps", 10), ("end_value", 0.01)),
        ): optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, steps, 0.01),
        Optimizer(0.3, schedule="cosine_onecycle_schedule"): optax.cosine_onecycle_schedule(
            steps, 0.3
        ),
        Optimizer(
            0.3,
            schedule="piecewise_constant_schedule",
            schedule_options=(("30", 0.1), ("60", 0.5)),
        ): optax.piecewise_constant_schedule(0.3, {30: 0.1, 60: 0.5}),
    }.items():
        actual = [float(optimizer.make_schedule(steps)(t)) for t in range(0, steps, 7)]
        expected = [float(reference(t)) for t in range(0, steps, 7)]
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        assert max(expected) > min(expected)


@pytest.mark.parametrize(
    ("options", "depends"),
    [
        ({}, False),
        ({"warmup": 0.1}, True),
        ({"schedule": "cosine"}, True),
        ({"schedule": "linear_schedule", "schedule_options": (("transition_steps", 5),)}, False),
        ({"schedule": "piecewise_constant_schedule"}, False),
    ],
)
def test_whether_the_schedule_depends_on_the_number_of_steps(options, depends):
    optimizer = Optimizer(0.1, **options)
    assert optimizer.depends_on_steps == depends
    short, long = (optimizer.make_schedule(steps) for steps in (50, 200))
    differs = any(float(short(t)) != float(long(t)) for t in range(50))
    assert differs == depends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "lbfgs"}, "'lbfgs' must need only gradients"),
        ({"algorithm": "lion", "options": (("b3", 1.0),)}, "an option of lion must be one of b1"),
        ({"options": (("learning_rate", 1.0),)}, "set the field learning_rate"),
        ({"options": (("b1", 0.9), ("b1", 0.8))}, "each name once, got 'b1' twice"),
        ({"options": (("b1", float("nan")),)}, "b1 in options must be a finite number"),
        ({"options": (("b1", "text"),)}, "options=.* must be valid"),
        (
            {"schedule": "exponential_decay", "schedule_options": (("decay_rate", math.nan),)},
            "decay_rate in schedule_options must be a finite number",
        ),
        ({"algorithm": "sm3", "warmup": 0.1}, "'sm3' needs schedule='constant' and no warmup"),
        ({"schedule": "exponential_decay"}, "needs the option 'decay_rate'"),
        ({"schedule_options": (("alpha", 0.5),)}, "an option of the schedule constant must be"),
        ({"algorithm": "adamv"}, "did you mean 'adam"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number above 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be a finite number above 0"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 needs one of the algorithms .*adamw"),
        ({"momentum": 0.9}, "momentum=0.9 needs one of the algorithms .*rmsprop, sgd"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**options)
