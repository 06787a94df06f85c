"""Training in bfloat16: matrix products are bfloat16; carries, gradients and state are float32."""

import jax
import optax
import pytest
from flax import nnx

import jrnn
from jrnn.train import TBPTT, Experiment, Network, Optimizer, train
from jrnn.train.run.data_plan import plan_task
from jrnn.train.step.state import init_state
from jrnn.train.step.step import TrainStep
from tests.sweep.test_sweep import Signs

FLOAT = jax.numpy.floating
HIDDEN = 6


def make_experiment(dtype, cell=None, engine="fused", **changes):
    network = Network(cell or jrnn.LSTM(HIDDEN), num_layers=2, dtype=dtype, engine=engine)
    options = {"steps": 120, "batch_size": 16, "eval_every": 60, **changes}
    return Experiment(Signs("tbptt" in changes), network, Optimizer(3e-2, "adamw"), **options)


def all_equations(jaxpr):
    """Yields all equations of a jaxpr, including those of nested loops and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(part, "jaxpr"):
                part = part.jaxpr
            if hasattr(part, "eqns"):
                yield from all_equations(part)


def make_step(experiment):
    """Returns a training step, a state, a batch, and a list.

    Each trace of the step appends the dtypes of the gradients to the list.
    """
    data = experiment.task.load()
    optimizer = experiment.optimizer.build(experiment.steps)
    graphdef, state = init_state(experiment.network.build(data, experiment.seed), optimizer)
    plan = plan_task(data, experiment, experiment.tbptt)
    carry = plan.init_carry(graphdef, state.weights)
    sampler = plan.make_sampler(experiment.seed)
    batch = jax.tree.map(lambda array: array[0], sampler.plan(0, 1))
    grad_dtypes = []

    def update(grads, state, params):
        grad_dtypes.append(float_dtypes(grads))
        return optimizer.update(grads, state, params)

    recording = optax.GradientTransformation(optimizer.init, update)
    step = TrainStep(graphdef, plan.loss, recording)
    return step, state._replace(carry=carry), sampler.get_batch(plan.examples, batch), grad_dtypes


def float_dtypes(tree):
    """Returns the names of the floating-point dtypes of the leaves."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jax.numpy.issubdtype(leaf.dtype, FLOAT)]
    return {str(leaf.dtype) for leaf in leaves}


CHANGES = [
    pytest.param({}, id="sequences"),
    pytest.param({"tbptt": TBPTT(2, 3)}, id="windows"),
]


@pytest.mark.parametrize("engine", ["fused", "scan"])
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("cell", [jrnn.LSTM(HIDDEN), jrnn.GRU(HIDDEN)], ids=["lstm", "gru"])
def test_products_are_bfloat16_and_the_state_is_float32(cell, changes, engine):
    step, state, batch, grad_dtypes = make_step(
        make_experiment("bfloat16", cell, engine, **changes)
    )
    equations = [*all_equations(jax.make_jaxpr(step)(state, batch).jaxpr)]
    # Only recurrent layers have an axis of this size; the head computes in float32.
    gates_size = HIDDEN * (4 if isinstance(cell, jrnn.LSTM) else 3)
    products = [
        {str(operand.aval.dtype) for operand in equation.invars}
        for equation in equations
        if equation.primitive.name == "dot_general"
        and any(gates_size in v.aval.shape for v in (*equation.invars, *equation.outvars))
    ]
    # Each of 2 layers has 2 products, by input and by recurrent weights. Each has one forward
    # product and two backward ones, one per operand; the network inputs need no gradient.
    assert len(products) >= 2 * 2 * 3 - 1 and all(dtypes == {"bfloat16"} for dtypes in products)
    after, metrics = jax.jit(step)(state, batch)
    assert grad_dtypes[0] == float_dtypes(metrics) == {"float32"}
    for each in (state, after):
        assert float_dtypes(each.params) == float_dtypes(each.opt_state) == {"float32"}
        assert float_dtypes(each.carry) == ({"float32"} if changes else set())
    loops = [equation for equation in equations if equation.primitive.name == "scan"]
    carries = [loop.invars[loop.params["num_consts"] :] for loop in loops]
    carries = [c[: loop.params["num_carry"]] for c, loop in zip(carries, loops, strict=True)]
    assert loops and all(float_dtypes([v.aval for v in c]) <= {"float32"} for c in carries)


@pytest.mark.parametrize("changes", CHANGES)
def test_bfloat16_training_matches_float32_accuracy(changes, tmp_path):
    results = {}
    for dtype in ("float32", "bfloat16"):
        experiment = make_experiment(dtype, **changes)
        results[dtype] = train(experiment, experiment.task.load(), tmp_path / dtype)
    float32, bfloat16 = (results[dtype].test for dtype in ("float32", "bfloat16"))
    assert float32["metric"] > 0.9 and bfloat16["metric"] > float32["metric"] - 0.05
    assert float32["loss"] != bfloat16["loss"]
    assert float_dtypes(nnx.state(results["bfloat16"].model, nnx.Param)) == {"float32"}
