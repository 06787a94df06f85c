"""Tests that `check_cell` accepts valid cells, and reports the properties that a cell violates."""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer
from jax.custom_batching import custom_vmap

import jrnn
from jrnn import Dense, Diagonal, LogDiagonal, structure
from jrnn.cell import split_noise
from jrnn.layers import Bidirectional, Stack
from jrnn.testing import PROPERTIES, Case, check_cell, check_layer, randomize


def test_every_cell_passes_check_cell(kind_or_row):
    check_cell(kind_or_row.make(3))


# Other properties of all cells: tests/cells/test_contract.py and tests/engines/test_truth.py.
FAST_CHECKS = ("frozen", "no_recompilation", "dtype", "taps", "structure", "coefficients")


@pytest.mark.parametrize("name", FAST_CHECKS)
def test_every_cell_passes_the_fast_checks(row, name):
    PROPERTIES[name](make_case(row.make(3)))


CLASS_NAMES = {"ids": lambda value: type(value).__name__ if isinstance(value, jrnn.Layer) else None}


class Params(NamedTuple):
    w: Any
    u: Any


@dataclass(frozen=True)
class ValidCell(jrnn.Cell):
    """A valid cell, and the base class of most cells below."""

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
class SquaresInRecur(ValidCell):
    def recur(self, params, carry):
        return carry**2 @ params.u


class NotADataclass(jrnn.Cell):
    hidden_size = 2
    init, init_carry, project = ValidCell.init, ValidCell.init_carry, ValidCell.project
    recur, update = ValidCell.recur, ValidCell.update


@dataclass(frozen=True, repr=False)
class WrongRepr(ValidCell):
    def __repr__(self):
        return "cell"


class Pair(NamedTuple):
    h: Any
    c: Any


@dataclass(frozen=True)
class NarrowsALeaf(ValidCell):
    """Its `update` returns a leaf whose dtype differs from the dtype in the carry."""

    def init_carry(self, params, batch_shape):
        h = super().init_carry(params, batch_shape)
        return Pair(h, h)

    def recur(self, params, carry):
        return carry.h @ params.u

    def update(self, params, carry, z, u):
        return Pair(jnp.tanh(z + u), jnp.zeros_like(carry.c, jnp.float16))

    def readout(self, params, carry, z):
        return carry.h


PREVIOUS_CALLS = []


@dataclass(frozen=True)
class ReadoutDependsOnUpdateCall(ValidCell):
    """Its `readout` returns another value if `update` is not called immediately before."""

    def update(self, params, carry, z, u):
        PREVIOUS_CALLS[:] = ["update"]
        return jnp.tanh(z + u)

    def readout(self, params, carry, z):
        return carry if PREVIOUS_CALLS and PREVIOUS_CALLS.pop() else 2 * carry


@dataclass(frozen=True)
class MixesTheBatch(ValidCell):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u - jnp.mean(u, axis=tuple(range(u.ndim - 1))))


@dataclass(frozen=True)
class DependsOnNumberOfAxes(ValidCell):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u) - (jnp.mean(u, axis=0) if u.ndim > 2 else 0)


@dataclass(frozen=True)
class InitialCarryDependsOnTheBatch(ValidCell):
    """Each element of the initial carry is the number of batch axes."""

    def init_carry(self, params, batch_shape):
        return jnp.full((*batch_shape, self.hidden_size), len(batch_shape), params.u.dtype)


@dataclass(frozen=True)
class BranchesOnTracers(ValidCell):
    def update(self, params, carry, z, u):
        h = jnp.tanh(z + u)
        return h if isinstance(h, Tracer) else 2 * h


@custom_vmap
def double_under_vmap(a):
    return 1.0 * a


double_under_vmap.def_vmap(lambda size, batched, a: (2.0 * a, True))
double_under_vmap_with_jvp = jax.custom_jvp(double_under_vmap)
double_under_vmap_with_jvp.defjvp(
    lambda primals, tangents: (double_under_vmap_with_jvp(*primals), tangents[0])
)


@dataclass(frozen=True)
class DoublesUnderVmap(ValidCell):
    def update(self, params, carry, z, u):
        return double_under_vmap_with_jvp(jnp.tanh(z + u))


@dataclass(frozen=True)
class WidensTheCarry(ValidCell):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u).astype(jnp.float32)


@dataclass(frozen=True)
class HashesByIdentity(ValidCell):
    """Each copy has a different hash, and therefore a different key in the cache of jit."""

    identity: Any = field(default_factory=object)


@dataclass(frozen=True)
class GradientIsNaN(ValidCell):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u) + jnp.sqrt(jnp.zeros_like(z) * z)


@dataclass(frozen=True)
class StopsTheGradient(ValidCell):
    def recur(self, params, carry):
        return carry @ jax.lax.stop_gradient(params.u)


COUNTER = itertools.count()


@dataclass(frozen=True)
class NotPure(ValidCell):
    def update(self, params, carry, z, u):
        return jnp.sin(z + u + next(COUNTER))


@dataclass(frozen=True)
class BranchesOnValues(ValidCell):
    def update(self, params, carry, z, u):
        return jnp.tanh(z + u) if bool((z > -1e9).all()) else z


@dataclass(frozen=True)
class TapsByNumber(ValidCell):
    """The name of the tap differs for each trace."""

    def update(self, params, carry, z, u):
        return jrnn.tap(f"h{next(COUNTER)}", jnp.tanh(z + u))


@dataclass(frozen=True)
class TapsInALoop(ValidCell):
    """Taps a value within a loop, so that the tap has several values."""

    def update(self, params, carry, z, u):
        body = lambda n, h: jrnn.tap("h", jnp.tanh(h))
        return jax.lax.fori_loop(0, 2, body, z + u)


@jax.custom_vjp
def mix_in_backward(a):
    return 1.0 * a


mix_in_backward.defvjp(
    lambda a: (1.0 * a, None),
    # Too small for finite differences to detect.
    lambda _, ct: (ct + 1e-4 * jnp.roll(ct, 1, axis=-1),),
)


@dataclass(frozen=True)
class MixesInBackward(ValidCell):
    """Its jaxpr is elementwise, but its derivative is not."""

    def update(self, params, carry, z, u):
        return mix_in_backward(jnp.tanh(z + u))


@dataclass(frozen=True)
class Halves(ValidCell):
    """h' = (h + z) / 2; `unbatched_error` is added to `a` if z has no leading axes."""

    unbatched_error: float = 0.0

    def recur(self, params, carry):
        return None

    def coefficients(self, params, z):
        a = 0.5 + (self.unbatched_error if z.ndim == 1 else 0.0)
        return Diagonal(jnp.full((self.hidden_size,), a, z.dtype), z / 2)

    def update(self, params, carry, z, u):
        return (carry + z) / 2


@dataclass(frozen=True)
class WrongCoefficients(Halves):
    """Its coefficients are wrong for any leading axes."""

    def coefficients(self, params, z):
        a, b = super().coefficients(params, z)
        return Diagonal(a + jnp.asarray(0.1, z.dtype), b)


@dataclass(frozen=True)
class ForgetsTheLogarithm(Halves):
    """Returns coefficients as `LogDiagonal` without taking their logarithms."""

    def coefficients(self, params, z):
        return LogDiagonal(*super().coefficients(params, z))


@dataclass(frozen=True)
class LogCoefficients(Halves):
    """h' = (h + |z|) / 2 with log-space coefficients."""

    def coefficients(self, params, z):
        a, b = super().coefficients(params, jnp.abs(z))
        return LogDiagonal(jnp.log(a), jnp.log(b))

    def update(self, params, carry, z, u):
        return super().update(params, carry, jnp.abs(z), u)


@dataclass(frozen=True)
class DenseLinear(Halves):
    """h' = A h + z with a matrix A. If `transposed`, the coefficients wrongly contain A^T."""

    transposed: bool = False

    def coefficients(self, params, z):
        a = params.u.T if self.transposed else params.u
        return Dense(jnp.broadcast_to(a.T, (*(1,) * (z.ndim - 1), *a.shape)), z)

    def recur(self, params, carry):
        return carry @ params.u

    def update(self, params, carry, z, u):
        return z + u


@dataclass(frozen=True)
class NotCausal(Halves):
    """If the inputs have a time axis, all steps depend on a last input above 2."""

    def project(self, params, x):
        large = jax.nn.relu(jnp.max(x[-1:]) - 2.0) if x.ndim == 3 and len(x) > 2 else 0.0
        return x @ params.w + large


@dataclass(frozen=True)
class NoisyCell(ValidCell):
    """Adds normal noise to z."""

    def sample_noise(self, params, xs, leading, key):
        return params, jax.random.normal(key, (*leading, self.hidden_size))

    def project(self, params, x):
        x, noise = split_noise(x)
        z = x @ params.w
        return z if noise is None else z + noise.astype(z.dtype)


@dataclass(frozen=True)
class NoiseDependsOnTheCall(NoisyCell):
    def sample_noise(self, params, xs, leading, key):
        return super().sample_noise(params, xs, leading, jax.random.fold_in(key, next(COUNTER)))


@dataclass(frozen=True)
class NoiseIgnoresTheKey(NoisyCell):
    def sample_noise(self, params, xs, leading, key):
        return super().sample_noise(params, xs, leading, jax.random.key(0))


@dataclass(frozen=True)
class NoiseWithoutTimeAxis(NoisyCell):
    def sample_noise(self, params, xs, leading, key):
        return super().sample_noise(params, xs, leading[1:], key)


@dataclass(frozen=True)
class CrossedStates(ValidCell):
    """Two states; each new state depends elementwise on the other old state.

    If `mixed_units`, the new `c` also depends on all units of the old `h`.
    """

    mixed_units: bool = False

    def init_carry(self, params, batch_shape):
        h = super().init_carry(params, batch_shape)
        return Pair(h, h)

    def recur(self, params, carry):
        return carry.h @ params.u if self.mixed_units else None

    def update(self, params, carry, z, u):
        h, c = jnp.tanh(z + carry.c), jnp.sin(carry.h)
        return Pair(h, c + jnp.tanh(u) if self.mixed_units else c)

    def readout(self, params, carry, z):
        return carry.h


@dataclass(frozen=True)
class MixesTheLastUnits(ValidCell):
    """Unit 0 is independent, and unit 1 depends on unit 2."""

    hidden_size: int = 3

    def recur(self, params, carry):
        return None

    def update(self, params, carry, z, u):
        return jnp.tanh(z + carry.at[..., 1].add(carry[..., 2]))


@dataclass(frozen=True)
class ComplexCell(ValidCell):
    """s' = i s + z, y = |s'|^2, with a complex carry. If `mixed`, a unit depends on other units."""

    mixed: bool = False

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size), jnp.complex64)

    def recur(self, params, carry):
        return None

    def update(self, params, carry, z, u):
        state = jnp.roll(carry.imag, 1, axis=-1) if self.mixed else carry
        return (1j * state + z.astype(jnp.float32)).astype(jnp.complex64)

    def readout(self, params, carry, z):
        return (carry.real**2 + carry.imag**2).astype(z.dtype)


@dataclass(frozen=True)
class UsesAtProperty(ValidCell):
    """Uses `.at`, which NumPy arrays do not have."""

    def update(self, params, carry, z, u):
        return jnp.tanh(z + u).at[..., 0].add(carry.at[..., 0].get())

    def readout(self, params, carry, z):
        return carry.at[..., 1].set(z[..., 0])


@pytest.mark.parametrize("cell", [ValidCell(), ComplexCell(), UsesAtProperty()], **CLASS_NAMES)
def test_valid_cell_passes(cell):
    check_cell(cell)


def make_case(cell):
    """Returns the argument of the checks in `PROPERTIES`, for random inputs of size 3."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: cell.init(key, 3))
    params = randomize(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), key)
    sample_inputs = lambda k, leading: randomize(cell.inputs(3, leading), k, 1.0)
    return Case(cell, params, sample_inputs, key, 3)


def check(name, cell):
    """Checks only the property `name`, because checking all properties takes seconds."""
    PROPERTIES[name](make_case(cell))


@pytest.mark.parametrize("cell", [Halves(), LogCoefficients(), DenseLinear()], **CLASS_NAMES)
def test_correct_coefficients_pass(cell):
    check("coefficients", cell)


@pytest.mark.parametrize(
    "cell",
    [
        Halves(unbatched_error=0.1),
        WrongCoefficients(),
        ForgetsTheLogarithm(),
        DenseLinear(transposed=True),
    ],
    **CLASS_NAMES,
)
def test_wrong_coefficients_fail(cell):
    with pytest.raises(AssertionError, match="coefficients do not reproduce step"):
        check("coefficients", cell)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (CrossedStates(), "block"),
        (CrossedStates(mixed_units=True), None),
        (ComplexCell(), "diagonal"),
        (ComplexCell(mixed=True), None),
        (MixesTheLastUnits(), None),
        (Halves(), "diagonal"),
    ],
    **CLASS_NAMES,
)
def test_correct_jacobian_structure_passes(cell, kind):
    case = make_case(cell)
    z = cell.project(case.params, case.xs())
    assert structure.jacobian_sparsity(cell, case.params, case.carry(), z) == kind
    check("structure", cell)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (CrossedStates(mixed_units=True), "block"),
        (CrossedStates(), "diagonal"),
        (MixesTheLastUnits(), "diagonal"),
        (ComplexCell(mixed=True), "block"),
        (ValidCell(), "diagonal"),
    ],
    **CLASS_NAMES,
)
def test_wrong_jacobian_structure_fails(cell, kind, monkeypatch):
    monkeypatch.setattr(structure, "jacobian_sparsity", lambda *_: kind)
    with pytest.raises(
        AssertionError,
        match=f"the Jacobian of a step is '{kind}' by its jaxpr, but its values are not",
    ):
        check("structure", cell)


@pytest.mark.parametrize("cell", [MixesTheLastUnits(), ComplexCell(mixed=True)], **CLASS_NAMES)
def test_update_that_is_not_elementwise_fails(cell, monkeypatch):
    monkeypatch.setattr(structure, "update_is_elementwise", lambda *_: True)
    with pytest.raises(
        AssertionError, match="update is elementwise by its jaxpr, but its derivative is not"
    ):
        check("structure", cell)


def test_correct_noise_passes():
    check("noise", NoisyCell())


def test_noise_without_time_axis_fails():
    with pytest.raises(AssertionError, match=r"must have the leading axes \(5, 3\), got \(3, 2\)"):
        check("noise", NoiseWithoutTimeAxis())


def test_noise_that_ignores_the_key_fails():
    with pytest.raises(AssertionError, match="noise must depend on the key"):
        check("noise", NoiseIgnoresTheKey())


def test_noncausal_cell_fails():
    with pytest.raises(
        AssertionError, match="associative: an earlier output depends on the last input"
    ):
        check("sequence", NotCausal())


INVALID = [
    (NotADataclass(), {"frozen", "no_recompilation"}),
    (WrongRepr(), {"frozen"}),
    (NarrowsALeaf(), {"step"}),
    (ReadoutDependsOnUpdateCall(), {"readout", "sequence"}),
    (DependsOnNumberOfAxes(), {"leading_axes"}),
    (MixesTheBatch(), {"leading_axes", "sequence", "vmap"}),
    (InitialCarryDependsOnTheBatch(), {"sequence"}),
    (BranchesOnTracers(), {"jit"}),
    (DoublesUnderVmap(), {"vmap"}),
    (HashesByIdentity(), {"frozen", "no_recompilation"}),
    (WidensTheCarry(), {"dtype"}),
    (StopsTheGradient(), {"gradients"}),
    (GradientIsNaN(), {"gradients", "structure"}),
    (TapsByNumber(), {"taps"}),
    (TapsInALoop(), {"taps"}),
    (MixesInBackward(), {"structure"}),
    (Halves(unbatched_error=0.1), {"coefficients"}),
    (NoiseDependsOnTheCall(), {"noise"}),
    (NoiseIgnoresTheKey(), {"noise"}),
    (SquaresInRecur(), {"recur"}),
    (NotPure(), {"step", "jit"}),
    (BranchesOnValues(), {"leading_axes", "sequence", "jit", "vmap"}),
]


@pytest.mark.parametrize(("cell", "expected"), INVALID, **CLASS_NAMES)
def test_invalid_cell_reports_its_failures(cell, expected):
    with pytest.raises(AssertionError) as raised:
        check_cell(cell)
    failures = {
        line.split(":")[0][2:] for line in str(raised.value).splitlines() if line[:2] == "- "
    }
    assert expected <= failures <= set(PROPERTIES)
    if len(expected) == 1:
        assert failures == expected


def test_every_property_is_violated_by_an_invalid_cell():
    assert set.union(*(names for _, names in INVALID)) == set(PROPERTIES)
    # These properties are violated only together with others.
    only_failures = {name for _, names in INVALID if len(names) == 1 for name in names}
    assert set(PROPERTIES) - only_failures == {"no_recompilation", "readout"}


@dataclass(frozen=True)
class StepRaises(ValidCell):
    def update(self, params, carry, z, u):
        raise KeyError("nothing here")


def test_cell_whose_step_raises_fails():
    with pytest.raises(AssertionError, match="step raises: 'nothing here'"):
        check_cell(StepRaises())


@dataclass(frozen=True)
class WrongCausalTrue(Bidirectional):
    @property
    def causal(self):
        return True


@dataclass(frozen=True)
class WrongCausalFalse(Stack):
    @property
    def causal(self):
        return False


@dataclass(frozen=True)
class WrongOutputShape(Stack):
    def output_shape(self, params, input_size):
        return jax.ShapeDtypeStruct((7,), jnp.float32)


@pytest.mark.parametrize(
    "layer",
    [
        ValidCell(),
        jrnn.stack([ValidCell(), ValidCell(3)]),
        jrnn.bidirectional(ValidCell(), merge="sum"),
    ],
    **CLASS_NAMES,
)
def test_valid_layer_passes(layer):
    check_layer(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (WrongCausalTrue(ValidCell()), "causal is True, but earlier outputs depend on the last"),
        (WrongCausalFalse([ValidCell()]), "causal is False, but earlier outputs do not depend"),
        (
            WrongOutputShape([ValidCell()]),
            r"check_layer.*output_shape is wrong: .*\(2,\) != \(7,\)",
        ),
    ],
    **CLASS_NAMES,
)
def test_invalid_layer_reports_its_failure(layer, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(layer)


def test_check_cell_raises_for_a_layer():
    with pytest.raises(TypeError, match="cell must be a jrnn.Cell, got Stack.*use check_layer"):
        check_cell(jrnn.stack([ValidCell()]))


@dataclass(frozen=True)
class TakesTimeIntervals(ValidCell):
    """Inputs are pairs of features and time intervals."""

    def inputs(self, input_size, batch_shape, dtype=jnp.float32):
        return jnp.zeros((*batch_shape, input_size), dtype), jnp.zeros(batch_shape, dtype)

    def project(self, params, x):
        features, elapsed = x
        return (features @ params.w) * jnp.exp(-elapsed)[..., None]


def test_cell_with_custom_inputs_passes():
    sample_inputs = lambda key, leading: (
        jax.random.normal(key, (*leading, 3)),
        jax.random.uniform(key, leading),
    )
    check_cell(TakesTimeIntervals(), sample_inputs=sample_inputs)


@dataclass(frozen=True)
class Decay(jrnn.Cell):
    """h' = h / 2 + x, a diagonal linear cell without parameters."""

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


def test_cell_without_parameters_reports_its_failure():
    with pytest.raises(AssertionError, match="1 of 15 properties fail\n- dtype: .*bfloat16"):
        check_cell(Decay())  # its carry is float32 for any dtype of the parameters


def test_randomize_changes_zeros_but_not_integers():
    tree = {"a": jnp.zeros((4, 4)), "n": jnp.arange(3)}
    noisy = randomize(tree, jax.random.key(0))
    assert (noisy["a"] != 0).all()
    np.testing.assert_array_equal(noisy["n"], tree["n"])
