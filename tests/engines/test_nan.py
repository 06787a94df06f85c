"""NaNs on padding have no effect, and NaNs before a reset none after it; all others propagate."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from jrnn import Cell, Engine, masking
from tests.helpers import Batch, Results, differentiate, random_batch, random_params
from tests.table import Row

STEPS = 6
NAN_SEQUENCE = 1  # the index of the sequence with the NaN
LENGTH = 5  # of that sequence
RESET = 3  # the step of its reset, in scan order from 0


class Baseline(NamedTuple):
    """A batch without NaN, and its results."""

    cell: Cell
    engine: Engine
    params: object
    batch: Batch
    reverse: bool
    scan_order: list[int]  # the valid steps of `NAN_SEQUENCE`
    clean: Results


@pytest.fixture
def baseline(kind: Row, engine: Engine, reverse: bool) -> Baseline:
    """Lengths are 6, 5, 0 and 3; `NAN_SEQUENCE` has one reset on a valid step, one on padding."""
    cell = kind.make(3)
    params = random_params(cell, 1, 2, np.float32)
    batch = random_batch(cell, params, 2, STEPS, 4, np.float32)
    scan_order = list(range(LENGTH))[:: -1 if reverse else 1]
    resets = np.zeros((STEPS, 4), bool)
    resets[scan_order[RESET], NAN_SEQUENCE] = True
    resets[LENGTH:, NAN_SEQUENCE] = True
    resets[2, 3] = True
    batch = batch._replace(lengths=np.array([STEPS, LENGTH, 0, 3], np.int32), resets=resets)
    clean = differentiate(cell, engine, params, batch, reverse)
    return Baseline(cell, engine, params, batch, reverse, scan_order, clean)


def run(base: Baseline, batch: Batch) -> Results:
    """Returns the values and the gradients for a changed batch."""
    return differentiate(base.cell, base.engine, base.params, batch, base.reverse)


def with_nan(base: Baseline, t: int, sequence: int = NAN_SEQUENCE) -> Batch:
    """Returns the batch with one input element set to NaN."""
    xs = base.batch.xs.copy()
    xs[t, sequence, 0] = np.nan
    return base.batch._replace(xs=xs)


def with_nan_in_carry(batch: Batch, sequence: int = NAN_SEQUENCE) -> Batch:
    """Returns the batch with NaN in each leaf of the initial carry of one sequence."""
    carry = jax.tree.map(np.copy, batch.carry)
    for leaf in jax.tree.leaves(carry):
        leaf[sequence, 0] = np.nan
    return batch._replace(carry=carry)


def mask_loss(base: Baseline, batch: Batch, sequence: int = NAN_SEQUENCE) -> Batch:
    """Returns the batch with zero cotangents for the outputs of `sequence` before its reset."""
    ct_ys = batch.ct_ys.copy()
    ct_ys[base.scan_order[:RESET], sequence] = 0
    return batch._replace(ct_ys=ct_ys)


def assert_same(got: object, want: object) -> None:
    """Asserts that all leaves are finite and exactly equal."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(w).all()
        np.testing.assert_array_equal(g, w)


def zero_outputs(ys: object, steps: list[int], sequence: int = NAN_SEQUENCE) -> np.ndarray:
    """Returns the outputs with some steps of one sequence set to zero."""
    ys = np.array(ys)
    ys[steps, sequence] = 0
    return ys


def test_nan_on_padding_has_no_effect(baseline: Baseline) -> None:
    batch = with_nan(baseline, LENGTH)
    batch.xs[:, 2] = np.nan  # the sequence of length 0
    batch.xs[3:, 3] = np.nan
    assert_same(run(baseline, batch), baseline.clean)


@pytest.mark.parametrize("bad_step", range(RESET))
def test_nan_before_a_reset_does_not_propagate_past_it(baseline: Baseline, bad_step: int) -> None:
    masked = mask_loss(baseline, baseline.batch)
    clean = run(baseline, masked)
    got = run(
        baseline, with_nan(baseline, baseline.scan_order[bad_step])._replace(ct_ys=masked.ct_ys)
    )
    affected = baseline.scan_order[bad_step:RESET]
    assert np.isnan(np.asarray(got.ys)[affected, NAN_SEQUENCE]).all(), (
        "outputs before the reset must be NaN"
    )
    assert_same(zero_outputs(got.ys, affected), zero_outputs(clean.ys, affected))
    assert_same(got._replace(ys=0), clean._replace(ys=0))


def test_a_loss_that_depends_on_a_nan_before_a_reset_has_a_nan_gradient(baseline: Baseline) -> None:
    bad = with_nan(baseline, baseline.scan_order[0])
    # Like the cotangent of a squared error, which is NaN where the output is NaN.
    ct_ys = np.where(np.isnan(run(baseline, bad).ys), np.nan, baseline.batch.ct_ys)
    assert np.isnan(ct_ys).any()
    got = run(baseline, bad._replace(ct_ys=ct_ys))
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(got.params_grad))


def test_nan_in_the_carry_does_not_propagate_past_a_reset(baseline: Baseline) -> None:
    masked = mask_loss(baseline, baseline.batch)
    clean, got = run(baseline, masked), run(baseline, with_nan_in_carry(masked))
    affected = baseline.scan_order[:RESET]
    assert np.isnan(np.asarray(got.ys)[affected, NAN_SEQUENCE]).all(), (
        "outputs before the reset must be NaN"
    )
    assert_same(zero_outputs(got.ys, affected), zero_outputs(clean.ys, affected))
    assert_same(got._replace(ys=0), clean._replace(ys=0))


def test_reset_at_the_first_step_discards_nan_in_the_carry(baseline: Baseline) -> None:
    resets = baseline.batch.resets.copy()
    resets[baseline.scan_order[0], NAN_SEQUENCE] = True
    batch = baseline.batch._replace(resets=resets)
    assert_same(run(baseline, with_nan_in_carry(batch)), run(baseline, batch))


@pytest.mark.parametrize("bad_step", [RESET, LENGTH - 1])
def test_nan_without_a_later_reset_propagates(baseline: Baseline, bad_step: int) -> None:
    # The input of step RESET is used after the reset.
    got = run(baseline, with_nan(baseline, baseline.scan_order[bad_step]))
    affected = baseline.scan_order[bad_step:]
    assert np.isnan(np.asarray(got.ys)[affected, NAN_SEQUENCE]).any(axis=-1).all()
    assert_same(zero_outputs(got.ys, affected), zero_outputs(baseline.clean.ys, affected))
    assert_propagated(baseline, got)


def test_nan_in_the_carry_without_a_reset_propagates(baseline: Baseline) -> None:
    # The remaining resets of `NAN_SEQUENCE` are on padding.
    resets = baseline.batch.resets.copy()
    resets[:LENGTH, NAN_SEQUENCE] = False
    got = run(baseline, with_nan_in_carry(baseline.batch._replace(resets=resets)))
    assert np.isnan(np.asarray(got.ys)[:LENGTH, NAN_SEQUENCE]).any(axis=-1).all()
    assert_propagated(baseline, got)


def assert_propagated(base: Baseline, got: Results) -> None:
    """Asserts that the final carry of `NAN_SEQUENCE` and the parameter gradients contain NaN.

    The other carries and the outputs on padding must not contain NaN.
    """
    others = np.arange(4) != NAN_SEQUENCE
    pairs = zip(jax.tree.leaves(got.carry), jax.tree.leaves(base.clean.carry), strict=True)
    for leaf, clean in pairs:
        assert np.isnan(leaf[NAN_SEQUENCE]).any()
        assert_same(leaf[others], clean[others])
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(got.params_grad))
    assert not np.isnan(np.asarray(got.ys)[LENGTH:, NAN_SEQUENCE]).any()


def test_nan_in_the_carry_of_an_empty_sequence_is_returned(baseline: Baseline) -> None:
    got = run(baseline, with_nan_in_carry(baseline.batch, sequence=2))
    for leaf in jax.tree.leaves(got.carry):
        assert np.isnan(leaf[2, 0])
    assert_same(got.ys, baseline.clean.ys)


def test_max_propagates_nan() -> None:
    # jnp.max does not propagate NaN on a CPU for this shape (jaxlib 0.10.2).
    a = np.ones((512, 1, 32), np.float32)
    a[6:, 0, 3] = np.nan
    got = jax.jit(lambda a: masking.max_propagating_nan(a, axis=0))(a)
    np.testing.assert_array_equal(got, np.where(np.arange(32) == 3, np.nan, 1)[None])
