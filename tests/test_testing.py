"""`check_cell` passes every cell of the table, and names the property that a broken one breaks."""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap

import jrnn
from jrnn import Dense, Diagonal, LogDiagonal, structure
from jrnn.cell import split_noise
from jrnn.layers import Bidirectional, Stack
from jrnn.testing import PROPERTIES, Case, check_cell, check_layer, randomized


def test_every_cell_conforms(kind_or_row):
    check_cell(kind_or_row.make(3))


# What the others show of a row is in tests/cells/test_contract.py and tests/engines/test_truth.py.
CHEAP = ("frozen", "no_recompilation", "dtype", "taps", "structure", "coefficients")


@pytest.mark.parametrize("name", CHEAP)
def test_every_cell_has_the_properties_that_cost_little(row, name):
    PROPERTIES[name](case_of(row.make(3)))


NAMES = {"ids": lambda value: type(value).__name__ if isinstance(value, jrnn.Layer) else None}


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
        return jnp.tanh(z + u)


@dataclass(frozen=True)
class SquaresInRecur(Right):
    def recur(self, params, carry):
        return carry**2 @ params.u


class NotADataclass(jrnn.Cell):
    hidden_size = 2
    init, init_carry, project = Right.init, Right.init_carry, Right.project
    recur, update = Right.recur, Right.update


@dataclass(frozen=True, repr=False)
class HidesItsName(Right):
    def __repr__(self):
        return "cell"


class Pair(NamedTuple):
    h: Any
    c: Any


@dataclass(frozen=True)
class NarrowsALeaf(Right):
    """`update` returns a leaf of another dtype than that of the carry."""

    def init_carry(self, params, batch_shape):
        h = super().init_carry(params, batch_shape)
        return Pair(h, h)

    def recur(self, params, carry):
        return carry.h @ params.u

    def update(self, params, carry, z, u):
        return Pair(jnp.tanh(z + u), jnp.zeros_like(carry.c, jnp.float16))

    def readout(self, params, carry, z):
        return carry.h


LEFT = []


@dataclass(frozen=True)
class ReadsWhatUpdateLeft(Right):
    """`readout` is another function where `update` was not called just before."""

    def update(self, params, carry, z, u):
        LEFT[:] = ["update"]
        return jnp.tanh(z + u)

    def readout(self, params, carry, z):
        return carry if LEFT and LEFT.pop() else 2 * carry


@dataclass(frozen=True)
class MixesTheBatch(Right):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u - jnp.mean(u, axis=tuple(range(u.ndim - 1))))


@dataclass(frozen=True)
class TakesOneLeadingAxis(Right):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u) - (jnp.mean(u, axis=0) if u.ndim > 2 else 0)


@dataclass(frozen=True)
class StartsByTheBatch(Right):
    """A reset of one sequence alone begins with zeros, and one in a batch with ones."""

    def init_carry(self, params, batch_shape):
        return jnp.full((*batch_shape, self.hidden_size), len(batch_shape), params.u.dtype)


@dataclass(frozen=True)
class LooksAtTracers(Right):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u)
        return h if isinstance(h, jax.core.Tracer) else 2 * h


@custom_vmap
def doubled_by_vmap(a):
    return 1.0 * a


doubled_by_vmap.def_vmap(lambda size, batched, a: (2.0 * a, True))
differentiable = jax.custom_jvp(doubled_by_vmap)
differentiable.defjvp(lambda primals, tangents: (differentiable(*primals), tangents[0]))


@dataclass(frozen=True)
class DoublesUnderVmap(Right):
    def update(self, params, carry, z, u):
        return differentiable(jnp.tanh(z + u))


@dataclass(frozen=True)
class WidensTheCarry(Right):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u).astype(jnp.float32)


@dataclass(frozen=True)
class CountsItsCalls(Right):
    """Not pure: its hash, and so its place in the cache of jit, is a new one for each copy."""

    mark: Any = field(default_factory=object)


@dataclass(frozen=True)
class GradientIsNaN(Right):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u) + jnp.sqrt(jnp.zeros_like(z) * z)


@dataclass(frozen=True)
class StopsTheGradient(Right):
    def recur(self, params, carry):
        return carry @ jax.lax.stop_gradient(params.u)


CALLS = itertools.count()


@dataclass(frozen=True)
class NotPure(Right):
    def update(self, params, carry, z, u):
        return jnp.sin(z + u + next(CALLS))


@dataclass(frozen=True)
class BranchesOnValues(Right):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u) if bool((z > -1e9).all()) else z


@dataclass(frozen=True)
class TapsByNumber(Right):
    """A new name at each trace."""

    def update(self, params, carry, z, u):
        return jrnn.tap(f"h{next(CALLS)}", jnp.tanh(z + u))


@dataclass(frozen=True)
class TapsInALoop(Right):
    """What is tapped in a loop has no single value."""

    def update(self, params, carry, z, u):
        body = lambda n, h: jrnn.tap("h", jnp.tanh(h))
        return jax.lax.fori_loop(0, 2, body, z + u)


@jax.custom_vjp
def mixes_in_secret(a):
    return 1.0 * a


mixes_in_secret.defvjp(
    lambda a: (1.0 * a, None),
    # So little that differences do not show it.
    lambda _, ct: (ct + 1e-4 * jnp.roll(ct, 1, axis=-1),),
)


@dataclass(frozen=True)
class HidesMixing(Right):
    """Its jaxpr is elementwise, and its derivative is not."""

    def update(self, params, carry, z, u):
        return mixes_in_secret(jnp.tanh(z + u))


@dataclass(frozen=True)
class Halves(Right):
    """h' = (h + z) / 2, with coefficients; `wrong` is added to a, for one sequence without axes."""

    wrong: float = 0.0

    def recur(self, params, carry):
        return None

    def coefficients(self, params, z):
        a = 0.5 + (self.wrong if z.ndim == 1 else 0.0)
        return Diagonal(jnp.full((self.hidden_size,), a, z.dtype), z / 2)

    def update(self, params, carry, z, u):
        return (carry + z) / 2


@dataclass(frozen=True)
class GivesOthers(Halves):
    """The same, wrong with any axes."""

    def coefficients(self, params, z):
        a, b = super().coefficients(params, z)
        return Diagonal(a + jnp.asarray(0.1, z.dtype), b)


@dataclass(frozen=True)
class ForgetsTheLogarithm(Halves):
    def coefficients(self, params, z):
        return LogDiagonal(*super().coefficients(params, z))


@dataclass(frozen=True)
class TakesTheLogarithm(Halves):
    """h' = (h + |z|) / 2, in logarithms."""

    def coefficients(self, params, z):
        a, b = super().coefficients(params, jnp.abs(z))
        return LogDiagonal(jnp.log(a), jnp.log(b))

    def update(self, params, carry, z, u):
        return super().update(params, carry, jnp.abs(z), u)


@dataclass(frozen=True)
class Rotates(Halves):
    """h' = A h + z, with a matrix A for all steps and sequences."""

    turned: bool = False

    def coefficients(self, params, z):
        a = params.u.T if self.turned else params.u
        return Dense(jnp.broadcast_to(a.T, (*(1,) * (z.ndim - 1), *a.shape)), z)

    def recur(self, params, carry):
        return carry @ params.u

    def update(self, params, carry, z, u):
        return z + u


@dataclass(frozen=True)
class Peeks(Halves):
    """Of all steps at once it sees whether the last input is large, and tells the others."""

    def project(self, params, x):
        large = jax.nn.relu(jnp.max(x[-1:]) - 2.0) if x.ndim == 3 and len(x) > 2 else 0.0
        return x @ params.w + large


@dataclass(frozen=True)
class Shaken(Right):
    """Normal noise is added to z."""

    def sample_noise(self, params, xs, leading, key):
        return params, jax.random.normal(key, (*leading, self.hidden_size))

    def project(self, params, x):
        x, noise = split_noise(x)
        z = x @ params.w
        return z if noise is None else z + noise.astype(z.dtype)


@dataclass(frozen=True)
class DrawsByCall(Shaken):
    def sample_noise(self, params, xs, leading, key):
        return super().sample_noise(params, xs, leading, jax.random.fold_in(key, next(CALLS)))


@dataclass(frozen=True)
class DrawsOnceForAllSteps(Shaken):
    def sample_noise(self, params, xs, leading, key):
        return super().sample_noise(params, xs, leading[1:], key)


@dataclass(frozen=True)
class Crossed(Right):
    """Two states, of which each new one is made of the other old one, unit by unit."""

    across: bool = False

    def init_carry(self, params, batch_shape):
        h = super().init_carry(params, batch_shape)
        return Pair(h, h)

    def recur(self, params, carry):
        return carry.h @ params.u if self.across else None

    def update(self, params, carry, z, u):
        h, c = jnp.tanh(z + carry.c), jnp.sin(carry.h)
        return Pair(h, c + jnp.tanh(u) if self.across else c)

    def readout(self, params, carry, z):
        return carry.h


@dataclass(frozen=True)
class MovesItsLastUnits(Right):
    """Unit 0 is apart; it is the units after it that see each other."""

    hidden_size: int = 3

    def recur(self, params, carry):
        return None

    def update(self, params, carry, z, u):
        return jnp.tanh(z + carry.at[..., 1].add(carry[..., 2]))


@dataclass(frozen=True)
class Spins(Right):
    """s' = i s + z, y = |s'|^2: a complex carry; `mixed` with that of its neighbour."""

    mixed: bool = False

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size), jnp.complex64)

    def recur(self, params, carry):
        return None

    def update(self, params, carry, z, u):
        past = jnp.roll(carry.imag, 1, axis=-1) if self.mixed else carry
        return (1j * past + z.astype(jnp.float32)).astype(jnp.complex64)

    def readout(self, params, carry, z):
        return (carry.real**2 + carry.imag**2).astype(z.dtype)


@dataclass(frozen=True)
class UsesAt(Right):
    """What JAX's arrays have and NumPy's lack."""

    def update(self, params, carry, z, u):
        return jnp.tanh(z + u).at[..., 0].add(carry.at[..., 0].get())

    def readout(self, params, carry, z):
        return carry.at[..., 1].set(z[..., 0])


@pytest.mark.parametrize("cell", [Right(), Spins(), UsesAt()], **NAMES)
def test_the_right_cell_passes(cell):
    check_cell(cell)


def case_of(cell):
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: cell.init(key, 3))
    params = randomized(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), key)
    inputs = lambda k, leading: randomized(cell.inputs(3, leading), k, 1.0)
    return Case(cell, params, inputs, key, 3)


def check(name, cell):
    """One property alone: all of them take seconds."""
    PROPERTIES[name](case_of(cell))


@pytest.mark.parametrize("cell", [Halves(), TakesTheLogarithm(), Rotates()], **NAMES)
def test_coefficients_that_are_right_pass(cell):
    check("coefficients", cell)


@pytest.mark.parametrize(
    "cell",
    [Halves(wrong=0.1), GivesOthers(), ForgetsTheLogarithm(), Rotates(turned=True)],
    **NAMES,
)
def test_coefficients_that_are_wrong_are_found(cell):
    with pytest.raises(AssertionError, match="coefficients are not those of step"):
        check("coefficients", cell)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (Crossed(), "block"),
        (Crossed(across=True), None),
        (Spins(), "diagonal"),
        (Spins(mixed=True), None),
        (MovesItsLastUnits(), None),
        (Halves(), "diagonal"),
    ],
    **NAMES,
)
def test_structure_that_is_read_off_the_jaxpr_passes(cell, kind):
    case = case_of(cell)
    z = cell.project(case.params, case.xs())
    assert structure.jacobian_kind(cell, case.params, case.carry(), z) == kind
    check("structure", cell)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (Crossed(across=True), "block"),
        (Crossed(), "diagonal"),
        (MovesItsLastUnits(), "diagonal"),
        (Spins(mixed=True), "block"),
        (Right(), "diagonal"),
    ],
    **NAMES,
)
def test_a_jacobian_of_another_structure_is_found(cell, kind, monkeypatch):
    monkeypatch.setattr(structure, "jacobian_kind", lambda *_: kind)
    with pytest.raises(AssertionError, match=f"the Jacobian of a step reads as '{kind}', and is"):
        check("structure", cell)


@pytest.mark.parametrize("cell", [MovesItsLastUnits(), Spins(mixed=True)], **NAMES)
def test_an_update_that_is_not_elementwise_is_found(cell, monkeypatch):
    monkeypatch.setattr(structure, "update_is_elementwise", lambda *_: True)
    with pytest.raises(AssertionError, match="update reads as elementwise, but mixes hidden"):
        check("structure", cell)


def test_noise_that_is_right_passes():
    check("noise", Shaken())


def test_noise_without_the_leading_axes_is_found():
    with pytest.raises(AssertionError, match=r"must have the leading axes \(5, 3\), got \(3, 2\)"):
        check("noise", DrawsOnceForAllSteps())


def test_an_engine_that_sees_the_future_is_found():
    with pytest.raises(AssertionError, match="associative: the last input changes an earlier out"):
        check("sequence", Peeks())


BROKEN = [
    (NotADataclass(), {"frozen", "no_recompilation"}),
    (HidesItsName(), {"frozen"}),
    (NarrowsALeaf(), {"step"}),
    (ReadsWhatUpdateLeft(), {"readout", "sequence"}),
    (TakesOneLeadingAxis(), {"leading_axes"}),
    (MixesTheBatch(), {"leading_axes", "sequence", "vmap"}),
    (StartsByTheBatch(), {"sequence"}),
    (LooksAtTracers(), {"jit"}),
    (DoublesUnderVmap(), {"vmap"}),
    (CountsItsCalls(), {"frozen", "no_recompilation"}),
    (WidensTheCarry(), {"dtype"}),
    (StopsTheGradient(), {"gradients"}),
    (GradientIsNaN(), {"gradients", "structure"}),
    (TapsByNumber(), {"taps"}),
    (TapsInALoop(), {"taps"}),
    (HidesMixing(), {"structure"}),
    (Halves(wrong=0.1), {"coefficients"}),
    (DrawsByCall(), {"noise"}),
    (SquaresInRecur(), {"recur"}),
    (NotPure(), {"step", "jit"}),
    (BranchesOnValues(), {"leading_axes", "sequence", "jit", "vmap"}),
]


@pytest.mark.parametrize(("cell", "broken"), BROKEN, **NAMES)
def test_a_broken_cell_is_told_what_it_breaks(cell, broken):
    with pytest.raises(AssertionError) as raised:
        check_cell(cell)
    told = {line.split(":")[0][2:] for line in str(raised.value).splitlines() if line[:2] == "- "}
    assert broken <= told <= set(PROPERTIES)
    if len(broken) == 1:
        assert told == broken


def test_every_property_is_broken_by_one_of_them():
    assert set.union(*(broken for _, broken in BROKEN)) == set(PROPERTIES)
    alone = {name for _, broken in BROKEN if len(broken) == 1 for name in broken}
    assert set(PROPERTIES) - alone == {"no_recompilation", "readout"}


@dataclass(frozen=True)
class FailsAtOnce(Right):
    def update(self, params, carry, z, u):
        raise KeyError("nothing here")


def test_a_cell_that_cannot_step_is_told_so():
    with pytest.raises(AssertionError, match="one step fails: 'nothing here'"):
        check_cell(FailsAtOnce())


@dataclass(frozen=True)
class ClaimsToBeCausal(Bidirectional):
    @property
    def causal(self):
        return True


@dataclass(frozen=True)
class ClaimsToSeeTheFuture(Stack):
    @property
    def causal(self):
        return False


@dataclass(frozen=True)
class HasAnotherOutput(Stack):
    def output_shape(self, params, input_size):
        return jax.ShapeDtypeStruct((7,), jnp.float32)


@pytest.mark.parametrize(
    "layer",
    [Right(), jrnn.stack([Right(), Right(3)]), jrnn.bidirectional(Right(), merge="sum")],
    **NAMES,
)
def test_the_right_layer_passes(layer):
    check_layer(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (ClaimsToBeCausal(Right()), "causal is True, but changing the last input changes earlier"),
        (ClaimsToSeeTheFuture([Right()]), "causal is False, .* changes no earlier output"),
        (HasAnotherOutput([Right()]), r"check_layer.*output_shape is wrong: .*\(2,\) != \(7,\)"),
    ],
    **NAMES,
)
def test_a_broken_layer_is_told_what_it_breaks(layer, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(layer)


def test_a_layer_is_no_cell():
    with pytest.raises(TypeError, match="cell must be a jrnn.Cell, got Stack.*see check_layer"):
        check_cell(jrnn.stack([Right()]))


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

    def init(self, key, input_size, dtype=jnp.float32):
        return ()

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size))

    def project(self, params, x):
        return x

    def recur(self, params, carry):
        return None

    def coefficients(self, params, z):
        return Diagonal(jnp.full((), 0.5), z)

    def update(self, params, carry, z, u):
        return carry / 2 + z


def test_a_cell_without_parameters_is_judged_by_the_rest():
    with pytest.raises(AssertionError, match="1 of 15 properties fail\n- dtype: .*bfloat16"):
        check_cell(Decay())  # its carry is float32 whatever dtype is asked for


def test_randomized_leaves_no_zero_and_no_integer_changed():
    tree = {"a": jnp.zeros((4, 4)), "n": jnp.arange(3)}
    noisy = randomized(tree, jax.random.key(0))
    assert (noisy["a"] != 0).all()
    np.testing.assert_array_equal(noisy["n"], tree["n"])
