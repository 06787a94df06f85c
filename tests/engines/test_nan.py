"""NaNs on padding or before a reset have no effect on later results; all others propagate."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from jrnn import Cell, Engine, masking
from tests.helpers import Batch, Results, differentiate, random_batch, random_params
from tests.table import Row

STEPS = 6
SEQUENCE = 1  # the sequence with the NaN
LENGTH = 5  # of that sequence
RESET = 3  # the step of its reset, in scan order from 0


class Setting(NamedTuple):
    """A batch without NaN and its results."""

    cell: Cell
    engine: Engine
    params: object
    batch: Batch
    reverse: bool
    scan_order: list[int]  # the valid steps of sequence SEQUENCE
    clean: Results


@pytest.fixture
def setting(kind: Row, engine: Engine, reverse: bool) -> Setting:
    """Lengths 6, 5, 0, 3; sequence SEQUENCE has one reset on a valid step and one on padding."""
    cell = kind.make(3)
    params = random_params(cell, 1, 2, np.float32)
    batch = random_batch(cell, params, 2, STEPS, 4, np.float32)
    scan_order = list(range(LENGTH))[:: -1 if reverse else 1]
    resets = np.zeros((STEPS, 4), bool)
    resets[scan_order[RESET], SEQUENCE] = True
    resets[LENGTH:, SEQUENCE] = True
    resets[2, 3] = True
    batch = batch._replace(lengths=np.array([STEPS, LENGTH, 0, 3], np.int32), resets=resets)
    clean = differentiate(cell, engine, params, batch, reverse)
    return Setting(cell, engine, params, batch, reverse, scan_order, clean)


def run(s: Setting, batch: Batch) -> Results:
    """Values and gradients for a changed batch."""
    return differentiate(s.cell, s.engine, s.params, batch, s.reverse)


def with_nan(s: Setting, t: int, row: int = SEQUENCE) -> Batch:
    """Sets one element of the inputs to NaN."""
    xs = s.batch.xs.copy()
    xs[t, row, 0] = np.nan
    return s.batch._replace(xs=xs)


def with_nan_in_carry(batch: Batch, row: int = SEQUENCE) -> Batch:
    """Sets one element of each leaf of the first carry to NaN."""
    carry = jax.tree.map(np.copy, batch.carry)
    for leaf in jax.tree.leaves(carry):
        leaf[row, 0] = np.nan
    return batch._replace(carry=carry)


def mask_loss(s: Setting, batch: Batch, row: int = SEQUENCE) -> Batch:
    """Removes the outputs of `row` before its reset from the loss."""
    ct_ys = batch.ct_ys.copy()
    ct_ys[s.scan_order[:RESET], row] = 0
    return batch._replace(ct_ys=ct_ys)


def assert_same(got: object, want: object) -> None:
    """Asserts that all leaves are finite and bitwise equal."""
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(w).all()
        np.testing.assert_array_equal(g, w)


def zero_outputs(ys: object, steps: list[int], row: int = SEQUENCE) -> np.ndarray:
    """Sets the outputs of some steps of one sequence to zero."""
    ys = np.array(ys)
    ys[steps, row] = 0
    return ys


def test_nan_on_padding_has_no_effect(setting: Setting) -> None:
    batch = with_nan(setting, LENGTH)
    batch.xs[:, 2] = np.nan  # the sequence of length 0
    batch.xs[3:, 3] = np.nan
    assert_same(run(setting, batch), setting.clean)


@pytest.mark.parametrize("bad_step", range(RESET))
def test_nan_before_a_reset_does_not_pass_it(setting: Setting, bad_step: int) -> None:
    masked = mask_loss(setting, setting.batch)
    clean = run(setting, masked)
    got = run(setting, with_nan(setting, setting.scan_order[bad_step])._replace(ct_ys=masked.ct_ys))
    affected = setting.scan_order[bad_step:RESET]
    assert np.isnan(np.asarray(got.ys)[affected, SEQUENCE]).all(), (
        "outputs before the reset must be NaN"
    )
    assert_same(zero_outputs(got.ys, affected), zero_outputs(clean.ys, affected))
    assert_same(got._replace(ys=0), clean._replace(ys=0))


def test_a_loss_that_reads_a_nan_before_a_reset_has_a_nan_gradient(setting: Setting) -> None:
    s, bad = setting, with_nan(setting, setting.scan_order[0])
    ct_ys = np.where(np.isnan(run(s, bad).ys), np.nan, s.batch.ct_ys)  # as of a squared error
    assert np.isnan(ct_ys).any()
    got = run(s, bad._replace(ct_ys=ct_ys))
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(got.params_grad))


def test_nan_in_the_carry_does_not_pass_a_reset(setting: Setting) -> None:
    masked = mask_loss(setting, setting.batch)
    clean, got = run(setting, masked), run(setting, with_nan_in_carry(masked))
    affected = setting.scan_order[:RESET]
    assert np.isnan(np.asarray(got.ys)[affected, SEQUENCE]).all(), (
        "outputs before the reset must be NaN"
    )
    assert_same(zero_outputs(got.ys, affected), zero_outputs(clean.ys, affected))
    assert_same(got._replace(ys=0), clean._replace(ys=0))


def test_reset_at_the_first_step_discards_nan_in_the_carry(setting: Setting) -> None:
    resets = setting.batch.resets.copy()
    resets[setting.scan_order[0], SEQUENCE] = True
    batch = setting.batch._replace(resets=resets)
    assert_same(run(setting, with_nan_in_carry(batch)), run(setting, batch))


@pytest.mark.parametrize("bad_step", [RESET, LENGTH - 1])
def test_nan_without_a_later_reset_propagates(setting: Setting, bad_step: int) -> None:
    # The input of step RESET is used after the reset.
    got = run(setting, with_nan(setting, setting.scan_order[bad_step]))
    affected = setting.scan_order[bad_step:]
    assert np.isnan(np.asarray(got.ys)[affected, SEQUENCE]).any(axis=-1).all()
    assert_same(zero_outputs(got.ys, affected), zero_outputs(setting.clean.ys, affected))
    assert_propagated(setting, got)


def test_nan_in_the_carry_without_a_reset_propagates(setting: Setting) -> None:
    # The remaining resets of sequence SEQUENCE are on padding.
    resets = setting.batch.resets.copy()
    resets[:LENGTH, SEQUENCE] = False
    got = run(setting, with_nan_in_carry(setting.batch._replace(resets=resets)))
    assert np.isnan(np.asarray(got.ys)[:LENGTH, SEQUENCE]).any(axis=-1).all()
    assert_propagated(setting, got)


def assert_propagated(s: Setting, got: Results) -> None:
    """Asserts that only the last carry of sequence SEQUENCE, and the gradient, have NaN."""
    others = np.arange(4) != SEQUENCE
    for leaf, clean in zip(jax.tree.leaves(got.carry), jax.tree.leaves(s.clean.carry), strict=True):
        assert np.isnan(leaf[SEQUENCE]).any()
        assert_same(leaf[others], clean[others])
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(got.params_grad))
    assert not np.isnan(np.asarray(got.ys)[LENGTH:, SEQUENCE]).any()


def test_nan_in_the_carry_of_an_empty_sequence_is_returned(setting: Setting) -> None:
    got = run(setting, with_nan_in_carry(setting.batch, row=2))
    for leaf in jax.tree.leaves(got.carry):
        assert np.isnan(leaf[2, 0])
    assert_same(got.ys, setting.clean.ys)


def test_max_propagates_nan() -> None:
    # jnp.max does not propagate NaN on a CPU for this shape (jaxlib 0.10.2).
    a = np.ones((512, 1, 32), np.float32)
    a[6:, 0, 3] = np.nan
    got = jax.jit(lambda a: masking.max_propagating_nan(a, axis=0))(a)
    np.testing.assert_array_equal(got, np.where(np.arange(32) == 3, np.nan, 1)[None])
