"""Nothing is compiled after the first evaluation and the first save."""

import jax
import pytest

import jrnn
from jrnn.train import TBPTT, Experiment, Network, Optimizer, train
from jrnn.train.run.trainer import Trainer
from tests.helpers import record_compilations
from tests.sweep.test_sweep import Signs

pytestmark = pytest.mark.usefixtures("disable_compilation_cache")
NUM_TRAIN = 120  # examples in the training split of `Signs`


def make_experiment(**changes):
    save_every = 1e-9  # seconds; saves whenever possible
    options = {"steps": 92, "batch_size": 8, "eval_every": 13, "save_every": save_every}
    task = Signs(per_step="tbptt" in changes)
    network = Network(jrnn.LSTM(5), dropout=0.1)
    return Experiment(task, network, Optimizer(1e-2, schedule="cosine"), **{**options, **changes})


# TBPTT(2, 3) cuts each example of 4 steps into 2 windows.
CASES = [
    pytest.param(2**30, {}, id="on-device"),
    pytest.param(10, {}, id="streamed"),
    pytest.param(2**30, {"tbptt": TBPTT(2, 3)}, id="windows"),
    pytest.param(10, {"tbptt": TBPTT(2, 3)}, id="streamed-windows"),
]


@pytest.mark.parametrize(("device_bytes", "changes"), CASES)
def test_nothing_is_compiled_after_the_first_evaluation_and_save(
    device_bytes, changes, tmp_path, monkeypatch
):
    monkeypatch.setattr("jrnn.train.data.sampler.DEVICE_BYTES", device_bytes)
    counts = []
    validate, save = Trainer.validate, Trainer.save

    def counting_validate(trainer):
        metrics = validate(trainer)
        counts.append((trainer.step, len(programs)))
        return metrics

    def counting_save(trainer):
        save(trainer)
        counts.append((trainer.step, len(programs)))

    monkeypatch.setattr(Trainer, "validate", counting_validate)
    monkeypatch.setattr(Trainer, "save", counting_save)
    experiment = make_experiment(**changes)
    data = experiment.task.load()
    jax.clear_caches()
    with record_compilations() as programs:
        train(experiment, data, tmp_path)
    first = next(index for index, (step, _) in enumerate(counts) if step == experiment.eval_every)
    later = counts[first + 1 :]
    assert later[0][0] == experiment.eval_every, (
        "a save must follow the first evaluation in the same step"
    )
    assert len({step for step, _ in later}) > 5 and later[-1][0] == experiment.steps
    assert later[0][1] > 0 and {count for _, count in later} == {later[0][1]}


@pytest.mark.parametrize(("device_bytes", "changes"), CASES)
def test_longer_run_does_not_recompile(device_bytes, changes, tmp_path, monkeypatch):
    monkeypatch.setattr("jrnn.train.data.sampler.DEVICE_BYTES", device_bytes)
    steps_per_epoch = NUM_TRAIN // 8 * (2 if "tbptt" in changes else 1)
    num_compiled = []
    for epochs in (2, 6):
        experiment = make_experiment(steps=epochs * steps_per_epoch, **changes)
        data = experiment.task.load()
        jax.clear_caches()
        with record_compilations() as programs:
            train(experiment, data, tmp_path / str(epochs))
        num_compiled.append(len(programs))
    assert num_compiled[0] == num_compiled[1] > 0
