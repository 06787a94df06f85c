"""The conformance suite: what every cell must satisfy, yours included.

Use it in a test of your own: `jrnn.testing.check_cell(MyCell(hidden_size=8))`.
"""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jrnn import structure
from jrnn.cell import Carry, Cell, Inputs, Params
from jrnn.dtypes import of_floats
from jrnn.engines import REGISTRY as ENGINES
from jrnn.engines import unroll
from jrnn.engines.pullback import floats
from jrnn.layer import Layer
from jrnn.taps import capture_taps

MakeInputs = Callable[[jax.Array, tuple[int, ...]], Inputs]

STEPS, BATCH = 5, 3
RTOL = 1e-5
EPSILON = 1e-3

# Compilation is nearly all of the time that a check takes, and unoptimised it is twice as fast. So
# the properties share what is compiled, and all other arrays are NumPy's: a function of jax.numpy
# outside of jit is compiled for each shape.
_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """One cell with random parameters, and a way to draw inputs for it."""

    cell: Cell
    params: Params
    inputs: MakeInputs
    key: jax.Array
    input_size: int

    def xs(self, *leading: int, seed: int = 0) -> Inputs:
        """Random inputs with these leading axes."""
        return _as_numpy(self.inputs(jax.random.fold_in(self.key, seed), leading))

    def carry(self, *leading: int, seed: int = 0) -> Carry:
        """A random carry with these leading axes."""
        key = jax.random.fold_in(self.key, 1000 + seed)
        return _as_numpy(randomized(self.cell.init_carry(self.params, leading), key))


class Step(NamedTuple):
    """One step and its parts."""

    gates: Any  # z and u
    derived: Any  # the carry of `update` and the output of `readout`
    stepped: Any  # what `step` returns


def randomized(tree: Any, key: jax.Array, scale: float = 0.3) -> Any:
    """Adds normal noise to every floating leaf, so that no zero hides a mistake.

    Args:
      tree: parameters or a carry.
      key: randomness.
      scale: standard deviation of the noise.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def noisy(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        noise = rng.normal(scale=scale, size=leaf.shape)
        if _is_complex(leaf):
            noise = (noise + 1j * rng.normal(scale=scale, size=leaf.shape)) / np.sqrt(2)
        return jnp.asarray((np.asarray(leaf) + noise).astype(leaf.dtype))

    return jax.tree.map(noisy, tree)


def check_cell(
    cell: Cell, input_size: int = 3, *, inputs: MakeInputs | None = None, seed: int = 0
) -> None:
    """Checks that a cell satisfies the contract of `jrnn.Cell`, and so is right on every engine.

    Parameters are random, biases included. The properties, each by its name:

    - frozen: a frozen dataclass, hashable, that prints as itself and survives pickling;
    - step: it is project, recur, update and readout, and keeps the structure of the carry;
    - readout: it depends on the parameters, the new carry and z alone;
    - leading_axes: each function returns the same with any leading axes;
    - sequence: `unroll` is a loop of steps, and of length 1 a step, with lengths, resets, reverse,
      on every engine that runs any cell, and for a linear one on `Associative`; changing the last
      input changes no output before it;
    - jit: compiled and not compiled are the same;
    - vmap: the same as a loop, and as a batch;
    - no_recompilation: an equal cell with new values does not compile again;
    - dtype: float32 and bfloat16 stay what they are, in the carry and in the output; complex
      numbers are complex64 for both; a `lax.scan` over `step` keeps the dtypes of its first carry;
    - gradients: finite, for parameters, inputs and carry, and right by finite differences;
    - taps: what `update` and `readout` tap can be read, and is the same under `jax.jit`;
    - structure: what `jrnn.structure` reads off the jaxpr holds for the derivatives;
    - coefficients: those of a linear cell give the step;
    - noise: that of a stochastic cell has the leading axes, and is a function of the key, the same
      on every engine; without a key there is none.

    Args:
      cell: the cell.
      input_size: passed to `cell.init`.
      inputs: `(key, leading) -> x`, for a cell whose inputs may not be any normal numbers; by
        default these, in the shapes of `cell.inputs`.
      seed: of all that is random.

    Raises:
      AssertionError: names every property that fails, and how.

    >>> import jrnn
    >>> check_cell(jrnn.Elman(hidden_size=2))
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"check_cell: cell must be a jrnn.Cell, got {cell!r}; see check_layer")
    key = jax.random.key(seed)
    inputs = _normal_inputs(cell, input_size) if inputs is None else inputs
    failures = []
    try:
        init = _jit(lambda key: cell.init(key, input_size, jnp.float32))
        params = randomized(init(key), key)
        case = Case(cell, params, inputs, key, input_size)
        with jax.disable_jit():
            cell.step(params, *_as_jax((case.carry(BATCH), case.xs(BATCH))))
    except Exception as error:
        raise AssertionError(f"check_cell({cell!r}): one step fails: {error}") from error
    for name, check in PROPERTIES.items():
        try:
            check(case)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip()[:600]}")
    if failures:
        raise AssertionError(
            f"check_cell({cell!r}): {len(failures)} of {len(PROPERTIES)} properties fail\n- "
            + "\n- ".join(failures)
        )


def check_layer(
    layer: Layer, input_size: int = 3, *, inputs: MakeInputs | None = None, seed: int = 0
) -> None:
    """Checks what any layer must satisfy: that `causal` is true, and `output_shape`.

    Changing the last input of a sequence must change no output before it if the layer says that it
    is causal, and must change one if it says that it is not.

    Args:
      layer: the layer, or a cell.
      input_size: passed to `layer.init`.
      inputs: as of `check_cell`.
      seed: of all that is random.

    Raises:
      AssertionError: one of them does not hold.

    >>> import jrnn
    >>> check_layer(jrnn.bidirectional(jrnn.Elman(hidden_size=2)))
    """
    key = jax.random.key(seed)
    inputs = _normal_inputs(layer, input_size) if inputs is None else inputs
    params = randomized(_jit(lambda key: layer.init(key, input_size, jnp.float32))(key), key)
    xs = _as_numpy(inputs(jax.random.fold_in(key, 0), (STEPS, BATCH)))
    run = _jit(lambda xs: unroll(layer, params, xs)[1])
    ys, others = (_as_numpy(run(given)) for given in (xs, _other_end(xs)))
    try:
        _same(_at(others, slice(STEPS - 1)), _at(ys, slice(STEPS - 1)), 0)
        changed = False
    except AssertionError:
        changed = True
    _require(
        layer.causal != changed,
        f"check_layer({layer!r}): causal is {layer.causal}, but changing the last input "
        + ("changes earlier outputs" if changed else "changes no earlier output"),
    )
    expected, got = layer.output_shape(params, input_size), _at(ys, 0, 0)
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    except AssertionError as error:
        raise AssertionError(f"check_layer({layer!r}): output_shape is wrong: {error}") from error


def _normal_inputs(layer: Layer, input_size: int) -> MakeInputs:
    return lambda key, leading: randomized(layer.inputs(input_size, leading), key, 1.0)


def _other_end(xs: Inputs) -> Inputs:
    """The inputs with other numbers at the last step."""
    end = lambda leaf: np.concatenate([leaf[:-1], leaf[-1:] + np.ones((), leaf.dtype)])
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: end(leaf) if floating(leaf) else leaf, xs)


@partial(_jit, static_argnums=0)
def _compiled_step(cell: Cell, params: Params, carry: Carry, x: Inputs) -> Step:
    z, u = cell.project(params, x), cell.recur(params, carry)
    after = cell.update(params, carry, z, u)
    derived = after, cell.readout(params, after, z)
    return Step((z, u), derived, cell.step(params, carry, x))


def _step(case: Case, carry: Carry, x: Inputs) -> Step:
    """A compiled step, and the parts of it, as NumPy arrays."""
    return _as_numpy(_compiled_step(case.cell, case.params, carry, x))


def _require(holds: bool, message: str) -> None:
    """An assertion that also works under `python -O`."""
    if not holds:
        raise AssertionError(message)


def _same(got: Any, expected: Any, rtol: float = RTOL) -> None:
    """Close, leaf by leaf, to the size of the largest expected number of each leaf."""
    chex.assert_trees_all_equal_structs(got, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        wide = np.complex128 if _is_complex(b) else np.float64
        a, b = np.asarray(a, wide), np.asarray(b, wide)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, np.abs(b).max(initial=0)))


def _as_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _as_jax(tree: Any) -> Any:
    """For calls outside of `jit`, where a cell may use what NumPy's arrays lack, such as `.at`."""
    return jax.tree.map(jnp.asarray, tree)


def _at(tree: Any, *index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _frozen(case: Case) -> None:
    cell = case.cell
    params = getattr(type(cell), "__dataclass_params__", None)
    frozen = params is not None and params.frozen
    _require(frozen, "a cell must be a @dataclass(frozen=True)")
    _require(hash(cell) == hash(copy.deepcopy(cell)), "equal cells must have equal hashes")
    _require(pickle.loads(pickle.dumps(cell)) == cell, "the cell must survive pickling")
    _require(type(cell).__name__ in repr(cell), "the cell must print its name and fields")


def _derived(case: Case) -> None:
    carry = case.carry(2, BATCH)
    step = _step(case, carry, case.xs(2, BATCH))
    _same(step.derived, step.stepped, 0)
    after, _ = step.derived
    chex.assert_trees_all_equal_shapes_and_dtypes(after, carry)


def _readout(case: Case) -> None:
    """Called alone it is that of the step: nothing of the old carry or of u reaches it."""
    carry, x = case.carry(2, BATCH), case.xs(2, BATCH)
    step = _step(case, carry, x)
    (z, _), (after, y) = step.gates, step.derived
    with jax.disable_jit():
        alone = case.cell.readout(case.params, *_as_jax((after, z)))
    _same(_as_numpy(alone), y)


def _taps(case: Case) -> None:
    """Traced alone: a tap is part of the jaxpr, and its value is what that computes."""
    cell = case.cell

    def derive(params: Params, carry: Carry, x: Inputs) -> tuple[Carry, Any]:
        z = cell.project(params, x)
        after = cell.update(params, carry, z, cell.recur(params, carry))
        return after, cell.readout(params, after, z)

    def capture(function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
        arguments = (case.params, case.carry(2, BATCH), case.xs(2, BATCH))
        return jax.eval_shape(capture_taps(function), *arguments)

    # A function of its own: JAX would not trace `derive` a second time.
    (plain, tapped), (jitted, again) = capture(derive), capture(jax.jit(lambda *a: derive(*a)))
    chex.assert_trees_all_equal_shapes_and_dtypes(jitted, plain)
    _require(again == tapped, f"taps are {tapped}, and under jax.jit {again}")


def _leading_axes(case: Case) -> None:
    carry, xs = case.carry(2, BATCH), case.xs(2, BATCH)
    whole = _step(case, carry, xs)
    for index in np.ndindex(2, BATCH):
        alone = _step(case, _at(carry, *index), _at(xs, *index))
        _same(_at(whole[:2], *index), alone[:2])


def _sequence(case: Case) -> None:
    cell, params, carry, xs = case.cell, case.params, case.carry(BATCH), case.xs(STEPS, BATCH)
    lengths = np.array([STEPS, STEPS - 2, 0])
    resets = np.zeros((STEPS, BATCH), bool)
    resets[2, 0] = resets[1, 1] = resets[STEPS - 1, 1] = True
    masks = {"lengths": lengths, "resets": resets}
    engines = [name for name, kind in ENGINES.items() if kind.general]
    engines += ["associative"] * _is_linear(case)
    ways = [(engine, reverse) for engine in engines for reverse in (False, True)]

    @_jit
    def all_ways(params, xs, carry):
        run = partial(unroll, cell, params, xs, carry, **masks)
        one = unroll(cell, params, _at(xs, slice(1)), carry)
        return one, [run(engine=engine, reverse=reverse) for engine, reverse in ways]

    one, results = all_ways(params, xs, carry)
    after, y = _step(case, carry, _at(xs, 0)).stepped
    _same(one, (after, _at(y, None)))
    truth = {way: _loop(case, xs, carry, lengths, resets, way) for way in (False, True)}
    _, others = all_ways(params, _other_end(xs), carry)
    for (engine, reverse), got, other in zip(ways, results, others, strict=True):
        try:
            _same(got, truth[reverse])
        except AssertionError as error:
            raise AssertionError(f"{engine}, reverse={reverse}: {error}") from error
        if not reverse:
            earlier = slice(STEPS - 1)
            try:
                _same(_at(other[1], earlier), _at(got[1], earlier), 0)
            except AssertionError as error:
                raise AssertionError(
                    f"{engine}: the last input changes an earlier output: {error}"
                ) from error


def _loop(
    case: Case, xs: Inputs, carry: Carry, lengths: np.ndarray, resets: np.ndarray, reverse: bool
) -> tuple[Carry, Any]:
    """Each sequence alone, step by step."""
    first = _as_numpy(case.cell.init_carry(case.params, ()))
    _, like = _step(case, first, _at(xs, 0, 0)).stepped
    lasts, outputs = [], []
    for b, length in enumerate(lengths):
        s = _at(carry, b)
        ys = [jax.tree.map(np.zeros_like, like) for _ in resets]
        for t in reversed(range(length)) if reverse else range(length):
            if resets[t, b]:
                s = first
            s, ys[t] = _step(case, s, _at(xs, t, b)).stepped
        lasts.append(s)
        outputs.append(_stack(ys))
    return _stack(lasts), jax.tree.map(lambda y: np.swapaxes(y, 0, 1), _stack(outputs))


def _compiled(case: Case) -> None:
    carry, x = case.carry(BATCH), case.xs(BATCH)
    with jax.disable_jit():
        plain = case.cell.step(case.params, *_as_jax((carry, x)))
    _same(_step(case, carry, x).stepped, plain)


def _vmap(case: Case) -> None:
    carry, x = case.carry(BATCH), case.xs(BATCH)
    mapped = _jit(jax.vmap(case.cell.step, in_axes=(None, 0, 0)))(case.params, carry, x)
    rows = [_step(case, _at(carry, b), _at(x, b)).stepped for b in range(BATCH)]
    _same(mapped, _stack(rows))
    _same(mapped, _step(case, carry, x).stepped)


def _no_recompilation(case: Case) -> None:
    traced = []

    def run(cell, params, xs):
        traced.append(cell)
        return unroll(cell, params, xs)

    run = jax.jit(run, static_argnums=0)  # only traced: what is traced once is compiled once
    run.trace(case.cell, case.params, case.xs(STEPS, BATCH))
    run.trace(copy.deepcopy(case.cell), case.params, case.xs(STEPS, BATCH, seed=1))
    _require(len(traced) == 1, "an equal cell with new values was traced again")


def _dtype(case: Case) -> None:
    def step(x, dtype):
        params = case.cell.init(case.key, case.input_size, dtype)
        carry = case.cell.init_carry(params, (BATCH,))
        return params, carry, case.cell.step(params, carry, x)

    for dtype in (jnp.float32, jnp.bfloat16):
        for tree in jax.eval_shape(partial(step, dtype=dtype), _cast(case.xs(BATCH), dtype)):
            wanted = {True: jnp.complex64, False: dtype}
            kept = [a.dtype == wanted[_is_complex(a)] for a in jax.tree.leaves(floats(tree))]
            _require(all(kept), f"{jnp.dtype(dtype).name} did not stay: {_dtypes(tree)}")
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.eval_shape(partial(case.cell.init, case.key, case.input_size, dtype))
        for first in (
            lambda p, xs: case.cell.init_carry(p, (BATCH,)),
            lambda p, xs: case.cell.init_carry_like(p, _at(xs, 0)),
        ):
            loop = lambda p, xs, first=first: jax.lax.scan(
                lambda carry, x: case.cell.step(p, carry, x), first(p, xs), xs
            )
            jax.eval_shape(loop, params, case.xs(STEPS, BATCH))


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.complexfloating)


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if real(leaf) else leaf, tree)


def _dtypes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.dtype.name, tree)


def _gradients(case: Case) -> None:
    given = {"params": case.params, "xs": case.xs(STEPS, BATCH), "carry": case.carry(BATCH)}
    named, structure = jax.tree.flatten_with_path(given)
    leaves = [leaf for _, leaf in named]

    def outputs(leaves):
        tree = jax.tree.unflatten(structure, leaves)
        results = unroll(case.cell, tree["params"], tree["xs"], tree["carry"])
        return jax.tree.leaves(floats(results))

    zeros = [np.zeros(y.shape, y.dtype) for y in jax.eval_shape(outputs, leaves)]
    weights = randomized(zeros, case.key, 1.0)

    def total(leaves):
        return sum((y * w).sum().real for y, w in zip(outputs(leaves), weights, strict=True))

    both = _jit(jax.value_and_grad(total, allow_int=True))
    leaves = _as_numpy(leaves)
    _, grads = both(leaves)
    for k, grad in enumerate(_as_numpy(grads)):
        if grad.dtype == jax.dtypes.float0:
            continue
        where = "d loss / d " + jax.tree_util.keystr(named[k][0])
        _require(bool(np.isfinite(grad).all()), f"{where} is not finite")
        signs = _signs(k, grad)
        nudge = lambda size, k=k, signs=signs: float(
            both([*leaves[:k], leaves[k] + signs * leaves[k].dtype.type(size), *leaves[k + 1 :]])[0]
        )
        slope = (nudge(EPSILON) - nudge(-EPSILON)) / (2 * EPSILON)
        np.testing.assert_allclose(
            (grad * signs).sum().real, slope, rtol=2e-2, atol=2e-2, err_msg=f"{where} is wrong"
        )


def _signs(seed: int, like: np.ndarray) -> np.ndarray:
    """Ones and minus ones, in both parts where it is complex."""
    parts = np.random.default_rng(seed).choice([-1.0, 1.0], (2, *like.shape))
    return (parts[0] + 1j * parts[1] if _is_complex(like) else parts[0]).astype(like.dtype)


def _is_linear(case: Case) -> bool:
    find = lambda params, x: case.cell.coefficients(params, case.cell.project(params, x))
    return jax.eval_shape(find, case.params, case.xs(BATCH)) is not None


def _structure(case: Case) -> None:
    """The traced facts against the derivatives themselves."""
    cell, params, carry, x = case.cell, case.params, case.carry(), case.xs()
    z, u = _step(case, carry, x).gates
    update = lambda tree: cell.update(params, *tree)
    step = lambda carry: cell.step(params, carry, x)[0]
    leaves = jax.tree.leaves((carry, z, u))
    same = len({np.shape(leaf) for leaf in leaves}) == 1
    if same and structure.update_is_elementwise(cell, params, carry, z, u):
        _require(
            _keeps_apart(update, (carry, z, u)),
            "update reads as elementwise, but mixes hidden units",
        )
    kind = structure.jacobian_kind(cell, params, carry, z)
    if kind is not None:
        _require(
            _keeps_apart(step, carry, leaves_too=kind == "diagonal"),
            f"the Jacobian of a step reads as {kind!r}, and is not",
        )


def _coefficients(case: Case) -> None:
    """`coefficients` gives the step, for a batch of sequences as well as for one."""
    if not _is_linear(case):
        return
    cell = case.cell

    @_jit
    def given(params: Params, carry: Carry, x: Inputs) -> Carry:
        coefficients: Any = cell.coefficients(params, cell.project(params, x))
        for tree in coefficients:
            chex.assert_trees_all_equal_structs(tree, carry)
        return coefficients.apply(carry)

    for leading in ((), (2, BATCH)):
        carry, xs = case.carry(*leading), case.xs(*leading)
        after = given(case.params, carry, xs)
        chex.assert_trees_all_equal_shapes(after, carry)
        try:
            _same(after, _step(case, carry, xs).stepped[0])
        except AssertionError as error:
            raise AssertionError(f"coefficients are not those of step: {error}") from error


def _noise(case: Case) -> None:
    """The noise of a stochastic cell is a function of the key alone."""
    cell, params, xs = case.cell, case.params, case.xs(STEPS, BATCH)
    if not cell.is_stochastic:
        return
    _, noise = cell.sample_noise(params, jax.eval_shape(lambda: xs), (STEPS, BATCH), case.key)
    for leaf in jax.tree.leaves(noise):
        _require(
            np.shape(leaf)[:2] == (STEPS, BATCH),
            f"leaves of the noise must have the leading axes {(STEPS, BATCH)}, got "
            f"{np.shape(leaf)}",
        )

    @_jit
    def runs(params: Params, xs: Inputs, key: jax.Array) -> list[Any]:
        engines = [name for name, kind in ENGINES.items() if kind.general]
        run = partial(unroll, cell, params, xs)
        return [run(key=key, engine=engine) for engine in engines] + [run(engine="scan")]

    *first, quiet = _as_numpy(runs(params, xs, case.key))
    *again, _ = _as_numpy(runs(params, xs, case.key))
    for one, other in zip(first, again, strict=True):
        _same(one, other, 0)
        _same(one, first[0])
    steps = _loop(case, xs, _as_numpy(cell.init_carry(params, (BATCH,))), *_unmasked(), False)
    _same(quiet, steps)


def _unmasked() -> tuple[np.ndarray, np.ndarray]:
    """Lengths and resets of whole sequences."""
    return np.full(BATCH, STEPS), np.zeros((STEPS, BATCH), bool)


def _keeps_apart(function: Callable[[Any], Any], tree: Any, leaves_too: bool = False) -> bool:
    """Whether each unit of the outputs depends on that unit of the inputs alone.

    Args:
      function: from one tree to another.
      tree: of leaves `[..., hidden]`.
      leaves_too: whether each number of a leaf may depend on the same number of that leaf alone.
    """
    numbers, restricted = of_floats(function, tree)
    leaves = jax.tree.leaves(tree)
    at = [leaves[n] for n in numbers]
    outputs = jax.eval_shape(restricted, *at)

    def allowed(k: int, m: int) -> np.ndarray:
        """Which numbers of output m may move with which of input k."""
        inside, outside = np.arange(at[k].size), np.arange(outputs[m].size)
        if leaves_too:
            return inside == outside[:, None] if k == m else np.zeros((), bool)
        return inside % at[k].shape[-1] == outside[:, None] % outputs[m].shape[-1]

    @_jit
    def jacobians(*at):
        """By number of the output, those of its real part and of its imaginary one."""
        # Reverse mode, for a step may have no other.
        _, pull = jax.vjp(restricted, *at)
        found = []
        for m, out in enumerate(outputs):
            for part in (1, 1j) if _is_complex(out) else (1,):
                cts = [np.zeros((out.size, *a.shape), a.dtype) for a in outputs]
                cts[m] = (part * np.eye(out.size)).reshape(cts[m].shape).astype(out.dtype)
                found.append((m, jax.vmap(pull)(cts)))
        return found

    return not any(
        np.any(np.where(allowed(k, int(m)), 0, np.reshape(by, (outputs[m].size, -1))) != 0)
        for m, moved in jacobians(*at)
        for k, by in enumerate(moved)
    )


PROPERTIES: dict[str, Callable[[Case], None]] = {
    "frozen": _frozen,
    "step": _derived,
    "readout": _readout,
    "leading_axes": _leading_axes,
    "sequence": _sequence,
    "jit": _compiled,
    "vmap": _vmap,
    "no_recompilation": _no_recompilation,
    "dtype": _dtype,
    "gradients": _gradients,
    "taps": _taps,
    "structure": _structure,
    "coefficients": _coefficients,
    "noise": _noise,
}
"""The properties by name; each takes a `Case` and raises when it does not hold."""
