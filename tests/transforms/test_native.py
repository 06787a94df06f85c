"""Which transforms run their inner cell on a C++ kernel, and their results compared with `scan`."""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jrnn
from jrnn import GRU, LSTM, Cell, Elman
from jrnn.transforms import (
    clip,
    dropout,
    highway,
    layer_norm,
    learned_carry,
    projection,
    residual,
    weight_drop,
    zoneout,
)
from tests.helpers import assert_close, random_params

pytest.importorskip("jrnn._kernels", reason="the C++ kernels are not built")

STEPS, BATCH, SIZE = 6, 4, 3
rng = np.random.default_rng(0)
XS = rng.normal(size=(STEPS, BATCH, SIZE)).astype(np.float32)
LENGTHS = np.array([6, 0, 2, 5], np.int32)
MASK = rng.random((STEPS, BATCH)) < 0.7
RESETS = rng.random((STEPS, BATCH)) < 0.3
KEY = jax.random.key(7)

WITH_KERNEL: dict[str, Cell] = {
    "dropout-x": dropout(LSTM(SIZE), x=0.4),
    "dropout-y": dropout(GRU(SIZE), y=0.4),
    "dropout-each-step": dropout(Elman(SIZE), x=0.3, y=0.4, each_step=True),
    "weight_drop": weight_drop(LSTM(SIZE, peepholes=True), rate=0.4),
    "projection": projection(LSTM(SIZE, coupled=True), size=2),
    "residual": residual(GRU(SIZE)),
    "highway": highway(Elman(SIZE, activation="relu")),
    "learned_carry": learned_carry(LSTM(SIZE)),
    "regularized": residual(dropout(weight_drop(LSTM(SIZE), rate=0.3), x=0.3, y=0.4)),
    "five-transforms": highway(
        projection(dropout(learned_carry(weight_drop(GRU(5), rate=0.3)), x=0.3, y=0.4), size=SIZE)
    ),
    "nested-dropout": dropout(residual(dropout(Elman(SIZE), x=0.3, y=0.3)), x=0.3, y=0.3),
}
WITHOUT_KERNEL: dict[str, Cell] = {
    "zoneout": zoneout(LSTM(SIZE), h=0.2, c=0.1),
    "clip-carry": clip(GRU(SIZE), carry=0.5),
    "clip-gradient": clip(Elman(SIZE), gradient=0.5),
    "layer_norm": layer_norm(LSTM(SIZE)),
    "candidate": dropout(GRU(SIZE), candidate=0.4),
    "zoneout-inside": residual(dropout(zoneout(LSTM(SIZE), h=0.2), x=0.3)),
    "clip-outside": clip(projection(LSTM(SIZE), size=2), carry=0.5),
}


class UnrollArgs(NamedTuple):
    """Optional arguments of `unroll`."""

    lengths: Any = None
    mask: Any = None
    resets: Any = None
    reverse: bool = False
    key: Any = None


UNROLL_ARGS = (
    UnrollArgs(LENGTHS, reverse=True),
    UnrollArgs(LENGTHS, resets=RESETS, key=KEY),
    UnrollArgs(mask=MASK, resets=RESETS, key=KEY),
)
# The entries of `WITH_KERNEL` that are not only in the exhaustive tests.
ALWAYS = ("regularized", "five-transforms", "learned_carry")


def padded_inputs(args: UnrollArgs) -> np.ndarray:
    """Returns inputs that are NaN on padding, which must not affect outputs or gradients."""
    valid = np.ones((STEPS, BATCH), bool) if args.mask is None else args.mask
    if args.lengths is not None:
        valid = valid & (np.arange(STEPS)[:, None] < args.lengths)
    return np.where(valid[..., None], XS, np.float32(np.nan))


def run(cell: Cell, engine: str, args: UnrollArgs, params: Any, xs: Any) -> Any:
    return jrnn.unroll(cell, params, xs, engine=engine, **args._asdict())


def run_auto_and_scan(cell: Cell, params: Any) -> Any:
    """Returns two lists of values and gradients for each of `UNROLL_ARGS`: `auto` and `scan`."""

    @jax.jit
    def run_all(params: Any) -> Any:
        results = []
        for engine in ("auto", "scan"):
            for args in UNROLL_ARGS:
                function = lambda p, xs, engine=engine, args=args: run(cell, engine, args, p, xs)
                out, vjp = jax.vjp(function, params, padded_inputs(args))
                results.append((out, vjp(jax.tree.map(jnp.cos, out))))
        return results

    results = run_all(params)
    return results[: len(UNROLL_ARGS)], results[len(UNROLL_ARGS) :]


def logged_choice(cell: Cell, args: UnrollArgs, caplog: pytest.LogCaptureFixture) -> str:
    """Returns the message that `auto` logs about its choice."""
    params = random_params(cell, 1, SIZE, np.float32)
    with caplog.at_level(logging.INFO, "jrnn"):
        jax.eval_shape(lambda p, xs: run(cell, "auto", args, p, xs), params, XS)
    return next(r.getMessage() for r in reversed(caplog.records) if r.name == "jrnn")


@pytest.mark.parametrize("name", WITH_KERNEL)
def test_auto_selects_the_kernel_inside_transforms(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for args in (UnrollArgs(), *UNROLL_ARGS):
        assert logged_choice(WITH_KERNEL[name], args, caplog) == "engine='auto' chose Native()"


@pytest.mark.parametrize(
    "name",
    [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.exhaustive) for n in WITH_KERNEL],
)
def test_kernel_inside_transforms_equals_scan(name: str) -> None:
    cell = WITH_KERNEL[name]
    params = random_params(cell, 1, SIZE, np.float32)
    for got, expected in zip(*run_auto_and_scan(cell, params), strict=True):
        assert_close(got, expected, 1e-5)
    if cell.is_stochastic:
        sampled, mean = (run(cell, "native", UnrollArgs(key=k), params, XS)[1] for k in (KEY, None))
        assert (np.asarray(sampled) != np.asarray(mean)).any()


@pytest.mark.parametrize("name", WITHOUT_KERNEL)
def test_transform_of_the_update_has_no_kernel(name: str, caplog: pytest.LogCaptureFixture) -> None:
    cell = WITHOUT_KERNEL[name]
    params = random_params(cell, 1, SIZE, np.float32)
    message = logged_choice(cell, UnrollArgs(key=KEY), caplog)
    assert "Native" not in message and "no kernel supports" in message
    with pytest.raises(ValueError, match="engine 'native': no kernel supports"):
        run(cell, "native", UnrollArgs(), params, XS)


class DoubledUpdate(LSTM):
    """An LSTM with a different update, which the kernel does not compute."""

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return jax.tree.map(lambda a: 2 * a, super().update(params, carry, z, u))


class SquaredOutput(LSTM):
    """An LSTM whose output is a function of h."""

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return carry.h**2


class CellStateOutput(LSTM):
    """An LSTM whose output is the cell state."""

    def readout(self, params: Any, carry: Any, z: Any) -> Any:
        return carry.c


@pytest.mark.parametrize(
    ("cell", "has_kernel"),
    [(DoubledUpdate(SIZE), False), (SquaredOutput(SIZE), True), (CellStateOutput(SIZE), False)],
    ids=["update", "readout-of-h", "readout-of-c"],
)
def test_subclass_uses_the_kernel_only_if_equivalent(
    cell: Cell, has_kernel: bool, caplog: pytest.LogCaptureFixture
) -> None:
    params = random_params(cell, 1, SIZE, np.float32)
    for transformed in (cell, residual(dropout(cell, x=0.3, y=0.3))):
        with caplog.at_level(logging.INFO, "jrnn"):
            got = run(transformed, "auto", UnrollArgs(LENGTHS, key=KEY), params, XS)
        assert_close(got, run(transformed, "scan", UnrollArgs(LENGTHS, key=KEY), params, XS), 1e-5)
    used_kernel = ["Native()" in r.getMessage() for r in caplog.records if r.name == "jrnn"]
    assert used_kernel == [has_kernel, has_kernel]


def test_float64_runs_without_a_kernel_and_mixed_dtypes_raise(x64: None) -> None:
    cell = residual(dropout(LSTM(SIZE), x=0.3))
    params = random_params(cell, 1, SIZE, np.float64)
    xs = XS.astype(np.float64)
    got = run(cell, "native", UnrollArgs(LENGTHS, key=KEY), params, xs)
    assert_close(got, run(cell, "scan", UnrollArgs(LENGTHS, key=KEY), params, xs), 1e-10)
    with pytest.raises(ValueError, match="engine 'native': products and gates must be float32"):
        run(cell, "native", UnrollArgs(), params, XS)


@dataclass(frozen=True)
class OtherOrder(jrnn.LSTM):
    """An LSTM whose gates are concatenated in another order."""

    @property
    def gates(self) -> tuple[str, ...]:
        return ("f", "i", "o", "g")


@dataclass(frozen=True)
class Halved(jrnn.transforms.Dropout):
    """A transform that changes `update`, derived from one that does not."""

    def update(self, params: Any, carry: Any, z: Any, u: Any) -> Any:
        return super().update(params, carry, z, u) / 2


@pytest.mark.parametrize("cell", [OtherOrder(3), Halved(jrnn.GRU(3))], ids=["gates", "update"])
def test_subclass_with_other_arithmetic_equals_scan(cell: jrnn.Cell) -> None:
    params = jax.tree.map(lambda a: a + 0.1, cell.init(jax.random.key(0), 2))
    xs = np.random.default_rng(0).normal(size=(4, 2, 2)).astype(np.float32)
    got, expected = (jrnn.unroll(cell, params, xs, engine=name)[1] for name in ("auto", "scan"))
    np.testing.assert_allclose(got, expected, atol=1e-6)
