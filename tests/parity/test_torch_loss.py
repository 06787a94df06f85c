"""The loss of classes equals that of torch, with ignored labels, smoothing and class weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrnn.tasks.task import Split
from jrnn.train.step.loss import Objective

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.25)])
def test_loss_and_gradient_equal_those_of_torch(smoothing, weights):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(9, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, -100, 1, 0, 0, -100, 2], np.int32)
    objective = Objective("class", "accuracy", None, smoothing, weights)

    def loss(outputs):
        sums = objective.compute_sums(outputs, Split(np.zeros((9, 1, 1)), labels))
        return sums.loss / sums.loss_weight

    expected = torch.tensor(outputs, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    value = criterion(expected, torch.tensor(labels, dtype=torch.long))
    value.backward()
    actual, gradient = jax.value_and_grad(loss)(jnp.asarray(outputs))
    assert float(actual) == pytest.approx(value.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, expected.grad.numpy(), rtol=1e-4, atol=1e-6)
