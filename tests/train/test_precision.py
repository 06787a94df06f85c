"""bfloat16 in training: products are narrow, and all that adds up over time stays wide."""

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


def experiment(dtype, cell=None, engine="fused", **changes):
    network = Network(cell or jrnn.LSTM(6), num_layers=2, dtype=dtype, engine=engine)
    options = {"steps": 120, "batch_size": 16, "eval_every": 60, **changes}
    return Experiment(Signs("tbptt" in changes), network, Optimizer(3e-2, "adamw"), **options)


def inner(jaxpr):
    """All equations of a jaxpr, with those of loops and calls within it."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(part, "jaxpr"):
                part = part.jaxpr
            if hasattr(part, "eqns"):
                yield from inner(part)


def one_step(e):
    """A training step of an experiment, what it is called with, and its gradients' dtypes."""
    data = e.task.load()
    optimizer = e.optimizer.build(e.steps)
    graphdef, state = init_state(e.network.build(data, e.seed), optimizer)
    plan = plan_task(data, e, e.tbptt)
    carry = plan.first_carry(graphdef, state.weights)
    sampler = plan.make_sampler(e.seed)
    batch = jax.tree.map(lambda array: array[0], sampler.plan(0, 1))
    seen = []

    def update(grads, state, params):
        seen.append(floats(grads))
        return optimizer.update(grads, state, params)

    watched = optax.GradientTransformation(optimizer.init, update)
    step = TrainStep(graphdef, plan.loss, watched)
    return step, state._replace(carry=carry), sampler.batch(plan.examples, batch), seen


def floats(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jax.numpy.issubdtype(leaf.dtype, FLOAT)]
    return {str(leaf.dtype) for leaf in leaves}


CHANGES = [
    pytest.param({}, id="whole"),
    pytest.param({"tbptt": TBPTT(2, 3)}, id="windows"),
]


@pytest.mark.parametrize("engine", ["fused", "scan"])
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("cell", [jrnn.LSTM(6), jrnn.GRU(6)], ids=["lstm", "gru"])
def test_products_are_narrow_and_all_that_is_kept_is_wide(cell, changes, engine):
    step, state, batch, gradients = one_step(experiment("bfloat16", cell, engine, **changes))
    equations = [*inner(jax.make_jaxpr(step)(state, batch).jaxpr)]
    # Every product of a layer has an axis of all gates; the head, which is float32, has none.
    gates = 6 * (4 if isinstance(cell, jrnn.LSTM) else 3)
    products = [
        {str(operand.aval.dtype) for operand in equation.invars}
        for equation in equations
        if equation.primitive.name == "dot_general"
        and any(gates in v.aval.shape for v in (*equation.invars, *equation.outvars))
    ]
    # Of two layers, and for each with input and carry: forward, and for both operands backward;
    # the inputs of the network have no gradient.
    assert len(products) >= 2 * 2 * 3 - 1 and all(kinds == {"bfloat16"} for kinds in products)
    after, report = jax.jit(step)(state, batch)
    assert gradients[0] == floats(report) == {"float32"}
    for kept in (state, after):
        assert floats(kept.params) == floats(kept.opt_state) == {"float32"}
        assert floats(kept.carry) == ({"float32"} if changes else set())
    loops = [equation for equation in equations if equation.primitive.name == "scan"]
    carries = [loop.invars[loop.params["num_consts"] :] for loop in loops]
    carries = [c[: loop.params["num_carry"]] for c, loop in zip(carries, loops, strict=True)]
    assert loops and all(floats([v.aval for v in c]) <= {"float32"} for c in carries)


@pytest.mark.parametrize("changes", CHANGES)
def test_training_in_bfloat16_reaches_what_float32_does(changes, tmp_path):
    trained = {}
    for dtype in ("float32", "bfloat16"):
        e = experiment(dtype, **changes)
        trained[dtype] = train(e, e.task.load(), tmp_path / dtype)
    wide, narrow = (trained[dtype].test for dtype in ("float32", "bfloat16"))
    assert wide["metric"] > 0.9 and narrow["metric"] > wide["metric"] - 0.05
    assert wide["loss"] != narrow["loss"]
    assert floats(nnx.state(trained["bfloat16"].model, nnx.Param)) == {"float32"}
