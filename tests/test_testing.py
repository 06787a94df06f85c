"""`check_cell` passes every cell of the table, and names the property that a broken one breaks."""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn.testing import PROPERTIES, Case, check_cell, randomized


def test_every_cell_conforms(kind_or_row):
    check_cell(kind_or_row.make(3))


# What the others show of a row is in tests/cells/test_contract.py and tests/engines/test_truth.py.
CHEAP = ("frozen", "no_recompilation", "dtype", "claims")


@pytest.mark.parametrize("name", CHEAP)
def test_every_cell_has_the_properties_that_cost_little(row, name):
    PROPERTIES[name](case_of(row.make(3)))


class Params(NamedTuple):
    w: Any
    u: Any


@dataclass(frozen=True)
class Right(jrnn.Cell):
    """A cell that breaks nothing; the ones below each break one thing."""

    hidden_size: int = 2

    def init(self, key, input_size, dtype=jnp.float32):
        draw = lambda rows: jax.random.normal(key, (rows, self.hidden_size), dtype)
        return Params(draw(input_size), draw(self.hidden_size))

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size), params.u.dtype)

    def project(self, params, x):
        return x @ params.w

    def recur(self, params, carry):
        return carry @ params.u

    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u)
        return h, h


class NotADataclass(jrnn.Cell):
    hidden_size = 2
    init, init_carry, project = Right.init, Right.init_carry, Right.project
    recur, update = Right.recur, Right.update


@dataclass(frozen=True)
class MixesTheBatch(Right):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u - jnp.mean(u, axis=tuple(range(u.ndim - 1))))
        return h, h


@dataclass(frozen=True)
class WidensTheCarry(Right):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u).astype(jnp.float32)
        return h, h


@dataclass(frozen=True)
class CountsItsCalls(Right):
    """Not pure: its hash, and so its place in the cache of jit, is a new one for each copy."""

    mark: Any = field(default_factory=object)


@dataclass(frozen=True)
class GradientIsNaN(Right):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u) + jnp.sqrt(jnp.zeros_like(z) * z)
        return h, h


@dataclass(frozen=True)
class ClaimsToBeDiagonal(Right):
    recurrence = "diagonal"


@dataclass(frozen=True)
class ClaimsToBeLinear(Right):
    recurrence = "linear"


@dataclass(frozen=True)
class HidesItsCoefficients(Right):
    """h' = (h + z) / 2: linear, and yet it says "diagonal"."""

    recurrence = "diagonal"

    def recur(self, params, carry):
        return ()

    def coefficients(self, params, z):
        return jnp.full((self.hidden_size,), 0.5, z.dtype), z / 2

    def update(self, params, carry, z, u):
        h = (carry + z) / 2
        return h, h


@dataclass(frozen=True)
class GivesThemFor(HidesItsCoefficients):
    """The same; `wrong` is added to a."""

    recurrence = "linear"
    wrong: float = 0.0

    def coefficients(self, params, z):
        a, b = super().coefficients(params, z)
        return a + jnp.asarray(self.wrong, z.dtype), b


@dataclass(frozen=True)
class ForgetsTheLogarithm(GivesThemFor):
    log_space = True


@dataclass(frozen=True)
class SaysLogAlone(Right):
    log_space = True


@dataclass(frozen=True)
class TakesTheLogarithm(GivesThemFor):
    """h' = (h + |z|) / 2, in logarithms."""

    log_space = True

    def coefficients(self, params, z):
        a, b = super().coefficients(params, jnp.abs(z))
        return jnp.log(a), jnp.log(b)

    def update(self, params, carry, z, u):
        return super().update(params, carry, jnp.abs(z), u)


@dataclass(frozen=True)
class Rotates(GivesThemFor):
    """h' = A h + z, with a matrix A for all steps and sequences."""

    turned: bool = False

    def coefficients(self, params, z):
        a = params.u.T if self.turned else params.u
        return jnp.broadcast_to(a.T, (*(1,) * (z.ndim - 1), *a.shape)), z

    def recur(self, params, carry):
        return carry @ params.u

    def update(self, params, carry, z, u):
        return z + u, z + u


class Pair(NamedTuple):
    h: Any
    c: Any


@dataclass(frozen=True)
class Crossed(Right):
    """Two states, of which each new one is made of the other old one, unit by unit."""

    recurrence = "block_diagonal"
    across: bool = False

    def init_carry(self, params, batch_shape):
        h = super().init_carry(params, batch_shape)
        return Pair(h, h)

    def recur(self, params, carry):
        return carry.h @ params.u if self.across else ()

    def update(self, params, carry, z, u):
        h, c = jnp.tanh(z + carry.c), jnp.sin(carry.h)
        return Pair(h, c + jnp.tanh(u) if self.across else c), h


@dataclass(frozen=True)
class ClaimsToKeepLeavesApart(Crossed):
    recurrence = "diagonal"


@dataclass(frozen=True)
class MovesItsLastUnits(Right):
    """Unit 0 is apart; it is the units after it that see each other."""

    hidden_size: int = 3
    recurrence = "diagonal"
    pointwise = False

    def recur(self, params, carry):
        return ()

    def update(self, params, carry, z, u):
        h = jnp.tanh(z + carry.at[..., 1].add(carry[..., 2]))
        return h, h


@dataclass(frozen=True)
class Spins(Right):
    """s' = i s + z, y = |s'|^2: a complex carry; `mixed` with that of its neighbour."""

    mixed: bool = False
    recurrence = "diagonal"

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size), jnp.complex64)

    def recur(self, params, carry):
        return ()

    def update(self, params, carry, z, u):
        past = jnp.roll(carry.imag, 1, axis=-1) if self.mixed else carry
        s = 1j * past + z.astype(jnp.float32)
        return s.astype(jnp.complex64), (s.real**2 + s.imag**2).astype(z.dtype)


@dataclass(frozen=True)
class ClaimsToBePointwise(Right):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u - u[..., ::-1])
        return h, h


@dataclass(frozen=True)
class StopsTheGradient(Right):
    def recur(self, params, carry):
        return carry @ jax.lax.stop_gradient(params.u)


CALLS = itertools.count()


@dataclass(frozen=True)
class NotPure(Right):
    def update(self, params, carry, z, u):
        h = jnp.sin(z + u + next(CALLS))
        return h, h


@dataclass(frozen=True)
class BranchesOnValues(Right):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u) if bool((z > -1e9).all()) else z
        return h, h


@pytest.mark.parametrize("cell", [Right(), Spins()], ids=["real", "complex"])
def test_the_right_cell_passes(cell):
    check_cell(cell)


def case_of(cell):
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: cell.init(key, 3))
    params = randomized(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), key)
    inputs = lambda k, leading: randomized(cell.inputs(3, leading), k, 1.0)
    return Case(cell, params, inputs, key, 3)


def claims(cell):
    """That property alone: the others take seconds."""
    PROPERTIES["claims"](case_of(cell))


@pytest.mark.parametrize(
    "cell",
    [GivesThemFor(), TakesTheLogarithm(), Rotates(), Crossed(), Spins()],
    ids=lambda cell: type(cell).__name__,
)
def test_what_is_claimed_and_true_passes(cell):
    claims(cell)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (HidesItsCoefficients(), "has coefficients if its recurrence is 'linear', and no other"),
        (ClaimsToBeLinear(), "has coefficients if its recurrence is 'linear', and no other"),
        (SaysLogAlone(), "log_space is about coefficients"),
        (GivesThemFor(wrong=0.1), "coefficients are not those of step"),
        (ForgetsTheLogarithm(), "coefficients are not those of step"),
        (TakesTheLogarithm(wrong=0.1), "coefficients are not those of step"),
        (Rotates(turned=True), "coefficients are not those of step"),
        (Crossed(across=True), "is 'block_diagonal', but a unit"),
        (ClaimsToKeepLeavesApart(), "is 'diagonal', but a number"),
        (MovesItsLastUnits(), "is 'diagonal', but a number"),
        (Spins(mixed=True), "pointwise is True, but update mixes hidden units"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, jrnn.Cell) else None,
)
def test_what_is_claimed_and_false_is_told(cell, message):
    with pytest.raises(AssertionError, match=message):
        claims(cell)


@pytest.mark.parametrize(
    ("cell", "broken"),
    [
        (NotADataclass(), {"frozen", "no_recompilation"}),
        (MixesTheBatch(), {"leading_axes", "sequence", "vmap"}),
        (WidensTheCarry(), {"dtype"}),
        (CountsItsCalls(), {"frozen", "no_recompilation"}),
        (GradientIsNaN(), {"gradients", "claims"}),
        (StopsTheGradient(), {"gradients"}),
        (ClaimsToBeDiagonal(), {"claims"}),
        (ClaimsToBeLinear(), {"claims"}),
        (ClaimsToBePointwise(), {"claims"}),
        (NotPure(), {"three_parts", "jit"}),
        (BranchesOnValues(), {"leading_axes", "sequence", "jit", "vmap"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, jrnn.Cell) else None,
)
def test_a_broken_cell_is_told_what_it_breaks(cell, broken):
    with pytest.raises(AssertionError) as raised:
        check_cell(cell)
    told = {line.split(":")[0][2:] for line in str(raised.value).splitlines() if line[:2] == "- "}
    assert broken <= told <= set(PROPERTIES)
    if len(broken) == 1:
        assert told == broken


def test_every_property_is_broken_by_one_of_them():
    (cases,) = (
        mark.args[1]
        for mark in test_a_broken_cell_is_told_what_it_breaks.pytestmark
        if mark.name == "parametrize"
    )
    assert set.union(*(broken for _, broken in cases)) == set(PROPERTIES)


@dataclass(frozen=True)
class FailsAtOnce(Right):
    def update(self, params, carry, z, u):
        raise KeyError("nothing here")


def test_a_cell_that_cannot_step_is_told_so():
    with pytest.raises(AssertionError, match="one step fails: 'nothing here'"):
        check_cell(FailsAtOnce())


@dataclass(frozen=True)
class TakesTime(Right):
    """Inputs are a pair: features and the time since the last step."""

    def project(self, params, x):
        features, elapsed = x
        return (features @ params.w) * jnp.exp(-elapsed)[..., None]


def test_inputs_may_be_of_any_shape():
    inputs = lambda key, leading: (
        jax.random.normal(key, (*leading, 3)),
        jax.random.uniform(key, leading),
    )
    check_cell(TakesTime(), inputs=inputs)


@dataclass(frozen=True)
class Decay(jrnn.Cell):
    """h' = h / 2 + x: linear, diagonal, and without any parameter."""

    hidden_size: int = 3
    recurrence = "linear"

    def init(self, key, input_size, dtype=jnp.float32):
        return ()

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size))

    def project(self, params, x):
        return x

    def recur(self, params, carry):
        return ()

    def coefficients(self, params, z):
        return jnp.full((), 0.5), z

    def update(self, params, carry, z, u):
        h = carry / 2 + z
        return h, h


def test_a_cell_without_parameters_is_judged_by_the_rest():
    with pytest.raises(AssertionError, match="1 of 10 properties fail\n- dtype: .*bfloat16"):
        check_cell(Decay())  # its carry is float32 whatever dtype is asked for


def test_randomized_leaves_no_zero_and_no_integer_changed():
    tree = {"a": jnp.zeros((4, 4)), "n": jnp.arange(3)}
    noisy = randomized(tree, jax.random.key(0))
    assert (noisy["a"] != 0).all()
    np.testing.assert_array_equal(noisy["n"], tree["n"])
