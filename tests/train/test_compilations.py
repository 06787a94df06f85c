"""Nothing is compiled after the first evaluation and the first save, whatever comes later."""

import jax
import pytest

import jrnn
from jrnn.train import TBPTT, Experiment, Network, Optimizer, train
from jrnn.train.run.trainer import Trainer
from tests.helpers import compiled
from tests.sweep.test_sweep import Signs

pytestmark = pytest.mark.usefixtures("uncached")
TRAINED, VALIDATED = 120, 40


def experiment(**changes):
    options = {"steps": 92, "batch_size": 8, "eval_every": 13, "save_every": 1e-9}
    task = Signs(per_step="tbptt" in changes)
    network = Network(jrnn.LSTM(5), dropout=0.1)
    return Experiment(task, network, Optimizer(1e-2, schedule="cosine"), **{**options, **changes})


PLACES = [
    pytest.param(2**30, {}, id="on the device"),
    pytest.param(10, {}, id="streamed"),
    pytest.param(2**30, {"tbptt": TBPTT(2, 3)}, id="windows"),
    pytest.param(10, {"tbptt": TBPTT(2, 3)}, id="streamed windows"),
]


@pytest.mark.parametrize(("on_device", "changes"), PLACES)
def test_nothing_is_compiled_after_the_first_evaluation_and_save(
    on_device, changes, tmp_path, monkeypatch
):
    monkeypatch.setattr("jrnn.train.data.sampler.DEVICE_BYTES", on_device)
    counts = []
    validate, save = Trainer.validate, Trainer.save

    def validating(run):
        found = validate(run)
        counts.append((run.step, len(programs)))
        return found

    def saving(run):
        save(run)
        counts.append((run.step, len(programs)))

    monkeypatch.setattr(Trainer, "validate", validating)
    monkeypatch.setattr(Trainer, "save", saving)
    e = experiment(**changes)
    data = e.task.load()
    jax.clear_caches()
    with compiled() as programs:
        train(e, data, tmp_path)
    first = next(place for place, (step, _) in enumerate(counts) if step == e.eval_every)
    after = counts[first + 1 :]
    assert after[0][0] == e.eval_every, "the first save after an evaluation"
    assert len({step for step, _ in after}) > 5 and after[-1][0] == e.steps
    assert after[0][1] > 0 and {count for _, count in after} == {after[0][1]}


@pytest.mark.parametrize(("on_device", "changes"), PLACES)
def test_a_longer_run_compiles_nothing_more(on_device, changes, tmp_path, monkeypatch):
    monkeypatch.setattr("jrnn.train.data.sampler.DEVICE_BYTES", on_device)
    epoch = TRAINED // 8 * (2 if "tbptt" in changes else 1)
    found = []
    for epochs in (2, 6):
        e = experiment(steps=epochs * epoch, **changes)
        data = e.task.load()
        jax.clear_caches()
        with compiled() as programs:
            train(e, data, tmp_path / str(epochs))
        found.append(len(programs))
    assert found[0] == found[1] > 0
