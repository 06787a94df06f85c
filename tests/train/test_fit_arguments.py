"""Mistakes in calls of `fit`: each gives one bounded line, and a failed run leaves no files."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jrnn
from jrnn.nn import RNN, Classifier, SequenceToSequence
from jrnn.tasks import load
from jrnn.train import NonFiniteLoss, Optimizer, fit
from jrnn.train.config.experiment import check_run_options
from tests.sweep.test_sweep import Signs

RNGS = nnx.Rngs(0)
X = np.linspace(-1, 1, 12 * 3 * 2, dtype=np.float32).reshape(12, 3, 2)
Y = np.arange(12, dtype=np.int32) % 4
TASK = load(Signs())


def body(size=2):
    return RNN(jrnn.Elman(3), size, rngs=RNGS)


CLASSIFIER = Classifier(body(), 4, rngs=RNGS)


def loss(model, batch):
    xs, ys = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(xs), ys).mean()


def call(model=CLASSIFIER, data=(X, Y), **options):
    defaults = {"loss": loss, "optimizer": optax.sgd(0.1), "steps": 2, "batch_size": 4}
    return fit(model, data, **({"progress": False} | defaults | options))


class Tensor:
    """A tensor of another library, which NumPy can convert."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)

    def __iter__(self):
        return iter(self._array)


class OnDevice(Tensor):
    """A tensor that NumPy cannot convert."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Dataset:
    """A map-style data set, as in PyTorch."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return X[index], Y[index]


class Own(nnx.Module):
    """A module that `fit` does not know."""

    def __init__(self):
        self.linear = nnx.Linear(2, 4, rngs=RNGS)

    def __call__(self, xs):
        return self.linear(xs[:, 0])


class Multiline:
    """An object whose `repr` has many lines."""

    def __repr__(self):
        return "Net(\n  (fc): Linear()\n" + "  (fc): Linear()\n" * 99 + ")"


OPTIMIZERS = {
    "name": ("adam", "got 'adam'; pass optax.adam(1e-3)"),
    "function": (optax.adam, "got the function adam; call it, such as optax.adam(1e-3)"),
    "number": (1e-3, "got 0.001; pass optax.adam(0.001)"),
    "options of jrnn": (Optimizer(1e-3), "pass optimizer.build(steps)"),
    "flax": (nnx.Optimizer(CLASSIFIER, optax.sgd(1.0), wrt=nnx.Param), "pass its attribute tx"),
    "none": (None, "got None; pass optax.adam(1e-3)"),
}
MODELS = {
    "class": (Own, "got the class Own; create an instance of the class"),
    "function": (loss, "got the function loss; pass the module itself"),
    "cell": (jrnn.LSTM(8), "got LSTM(hidden_size=8); wrap the cell: jrnn.nn.RNN(cell, input_size"),
    "many lines": (Multiline(), "got Net( (fc): Linear() (fc)"),
    "none": (None, "got None; pass a module such as jrnn.nn.Classifier(...)"),
}
LOSSES = {
    "name": ("mse", "got 'mse'; pass a function"),
    "class": (Own, "got the class Own; pass a function"),
    "one argument": (lambda outputs: outputs, "got arguments (outputs); call the model"),
    "three arguments": (lambda model, x, y: 0.0, "got arguments (model, x, y); call the model"),
    "returns none": (lambda m, b: None, "got None; return means"),
    "returns a dict": (lambda m, b: {"loss": loss(m, b)}, "got dict of 1 arrays; return means"),
    "returns three": (lambda m, b: (loss(m, b),) * 3, "got tuple of 3 arrays; return means"),
    "not a scalar": (lambda m, b: m(b[0]), "got a loss of shape (4, 4) and dtype float32"),
    "int": (lambda m, b: jnp.sum(b[1]), "got a loss of shape () and dtype int32"),
    "metric of none": (lambda m, b: (loss(m, b), None), "got None; return means"),
    "metric of text": (lambda m, b: (loss(m, b), "accuracy"), "got 'accuracy'; return means"),
}
TUPLE = "must be a tuple of arrays such as (x, y), or a list of batches"
BATCH = "each entry of a list or another iterable is a batch, so pass arrays as a tuple (x, y)"
DATA = {
    "list": ([X, Y], f"data {TUPLE}"),
    "zip": (list(zip(X, Y, strict=True)), f"got shapes (3, 2), (); {BATCH}"),
    "iterator of examples": (zip(X, Y, strict=True), f"got shapes (3, 2), (); {BATCH}"),
    "numbers": ([1.0, 2.0], f"the arrays of a batch of data must have {'the same first axis'}"),
    "none": (None, "data must be arrays, an iterable of batches or the data of a task, got None"),
    "text": ("train.csv", "got 'train.csv'; pass arrays"),
    "module": (CLASSIFIER, "got Classifier of 5 arrays; pass arrays"),
    "task": (Signs(), "load it by jrnn.tasks.load(task)"),
    "data set": (Dataset(), "such as a DataLoader of a PyTorch Dataset"),
    "data set in a tuple": ((X, Dataset()), "data[1] must be an array, got <"),
    "not on the host": ((X, OnDevice(Y)), "convert tensors by .detach().cpu().numpy()"),
    "text labels": ((X, np.array(["a", "b"] * 6)), "data[1] must contain numbers, got dtype <U1"),
    "list of texts": ((X, ["a", "b"] * 6), "data[1] must contain numbers, got dtype <U1"),
    "objects": ({"y": np.array([X, None], object)}, "data['y'] must contain numbers, got dtype"),
    "unequal lists": (([[1.0], [2.0, 3.0]], Y), "data[0] must be an array, or numbers that NumPy"),
    "lists": ((X[:5].tolist(), Y), "must have the same first axis, the examples, got shapes (5, 3"),
    "many shapes": (tuple(np.zeros(k + 1) for k in range(999)), "got shapes (1,), (2,)"),
    "no examples": ((X[:0], Y[:0]), "data must have at least one example, got shape (0, 3, 2)"),
    "no batches": ([], "data must yield batches of arrays, got None"),
}
VALIDATION = {
    "list": ([X, Y], f"validation {TUPLE}"),
    "zip": (list(zip(X, Y, strict=True)), f"got shapes (3, 2), (); {BATCH}"),
    "no examples": ((X[:0], Y[:0]), "validation must have at least one example"),
    "no batches": ([], "validation must have at least one batch, got none"),
    "other lengths": ((X, Y[:3]), "validation must have the same first axis"),
    "text labels": ((X[:2], ["a", "b"]), "validation[1] must contain numbers"),
}
WEIGHTS = "must be a tuple with one number for each class, such as (1.0, 2.0), 'balanced' or None"
TENSORBOARD = "writers must be a sequence of writers, such as [jrnn.train.TensorBoardWriter(folder"
OPTIONS = [
    ({"steps": 0}, "steps must be a positive int, got 0"),
    ({"batch_size": 2.5}, "batch_size must be a positive int, got 2.5"),
    ({"freeze": "body"}, "freeze must be a tuple of non-empty strings, such as ('body',), got 'b"),
    ({"freeze": 3}, "freeze must be a tuple of non-empty strings"),
    ({"class_weights": {0: 1.0}}, f"class_weights {WEIGHTS}, got {{0: 1.0}}"),
    ({"class_weights": "balance"}, "got 'balance'; did you mean 'balanced'?"),
    ({"class_weights": np.ones((2, 2))}, f"class_weights {WEIGHTS}, got an array of shape (2, 2)"),
    ({"class_weights": np.array([1, -2.0])}, "class_weights must be a finite number of at least 0"),
    ({"class_weights": np.array([1, 2.0])}, "label_smoothing and class_weights need the data of"),
    ({"higher_is_better": "yes"}, "higher_is_better must be True or False, got 'yes'"),
    ({"metric": loss}, "metric must be a str, got the function loss"),
    ({"description": 3}, "description must be a str, got 3"),
    ({"writers": "tensorboard"}, TENSORBOARD),
    ({"writers": [print]}, TENSORBOARD),
    ({"run_dir": 3}, "run_dir must be a path or None, got 3"),
    ({"resume": "yes"}, "resume must be True or False"),
    ({"resume": True}, "run_dir must be the folder of the run for resume=True, got None"),
    ({"tbptt": 8}, "tbptt must be a TBPTT, got 8"),
    ({"group": 2}, "group must be a ProcessGroup, got 2"),
    ({"progress": "yes"}, "progress must be one of"),
    ({"epochs": 3}, "epochs is not an argument; use steps"),
    ({"criterion": loss}, "criterion is not an argument; use loss"),
    ({"test": (X, Y[:3])}, "the arrays of test must have the same first axis"),
]
MISTAKES = [
    *(({"optimizer": value}, message) for value, message in OPTIMIZERS.values()),
    *(({"model": value}, message) for value, message in MODELS.values()),
    *(({"loss": value}, message) for value, message in LOSSES.values()),
    *(({"data": value}, message) for value, message in DATA.values()),
    *(({"validation": value}, message) for value, message in VALIDATION.values()),
    *OPTIONS,
    ({"model": (X, Y), "data": CLASSIFIER}, "got tuple of 2 arrays; the order is fit(model, data)"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_give_one_line_and_leave_no_files(options, message, tmp_path):
    run_dir = None if "resume" in options else tmp_path / "run"
    with pytest.raises((TypeError, ValueError)) as error:
        call(**({"run_dir": run_dir} | options))
    text = str(error.value)
    assert message in text and text.startswith("fit: ")
    assert "\n" not in text and len(text) < 450
    assert list(tmp_path.iterdir()) == []


def test_arrays_as_two_arguments_are_explained():
    with pytest.raises(TypeError, match=r"^fit: data must be one argument, such as a tuple"):
        fit(CLASSIFIER, X, Y, loss=loss, optimizer=optax.sgd(0.1), steps=2)  # pyright: ignore


HEADS = {
    "too few": (Classifier(body(1), 1, rngs=RNGS), "output_size=2 for the 2 classes of the data"),
    "too many": (Classifier(body(1), 5, rngs=RNGS), "got output_size=5; set output_size=2"),
    "per step": (SequenceToSequence(body(1), 2, rngs=RNGS), "must be a jrnn.nn.Classifier for the"),
    "other": (Own(), "got Own; wrap it in jrnn.nn.Classifier, or pass a loss"),
}


@pytest.mark.parametrize("head", HEADS)
def test_model_must_have_the_outputs_of_a_task(head, tmp_path):
    model, message = HEADS[head]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call(model, TASK, loss=None, run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


class FailingLoss(Exception):
    """An error in the loss of a user."""


@pytest.mark.parametrize("is_validation", [False, True])
def test_errors_of_a_loss_are_raised_unchanged_and_leave_no_files(is_validation, tmp_path):
    def failing(model, batch):
        if len(batch[0]) == (2 if is_validation else 4):
            raise FailingLoss
        return loss(model, batch)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(FailingLoss):
        call(loss=failing, run_dir=tmp_path / "run", validation=(X[:2], Y[:2]))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def with_entry(array, index, value):
    copy = array.copy()
    copy[index] = value
    return copy


NON_FINITE = {
    "nan": (
        {"data": (with_entry(X, (5, 1, 0), np.nan), Y)},
        "data[0] must be finite in float32, got nan at index (5, 1, 0); replace",
    ),
    "inf in a dict of batches": (
        {"data": [(X[:4], Y[:4]), (with_entry(X[:4], (1, 2, 1), np.inf), Y[:4])]},
        "data[1][0] must be finite in float32, got inf at index (1, 2, 1)",
    ),
    "label": (
        {"data": (X, Y + 3)},
        "If data[1] has labels, they must be in 0..3 for the 4 outputs of the model, got 4 at",
    ),
    "validation": (
        {"validation": (X[:2], np.array([0, 9]))},
        "If validation[1] has labels, they must be in 0..3 for the 4 outputs of the model, got 9",
    ),
    "learning rate": (
        {"optimizer": optax.sgd(np.inf)},
        "Try a lower learning rate",
    ),
}


@pytest.mark.parametrize("name", NON_FINITE)
def test_non_finite_loss_names_the_first_invalid_entry(name):
    options, message = NON_FINITE[name]
    with pytest.raises(NonFiniteLoss, match="loss is|gradient is") as error:
        call(**({"steps": 6} | options))
    assert message in str(error.value)
    assert ("the validation loss is nan at step 6." in str(error.value)) == (name == "validation")


def test_non_finite_test_loss_is_reported(caplog):
    result = call(test=(X[:2], np.array([0, 9])))
    assert np.isnan(result.test["loss"])
    assert "the test loss is nan. If test[1] has labels, they must be in 0..3" in caplog.text


RESUMED = {
    "values": ({"data": (X + 1, Y)}, "data must be the same as before to resume the run"),
    "shape": ({"data": (X[:8], Y[:8])}, "float32[8, 3, 2], int32[8] (hash"),
    "batches": ({"data": [(X[:4], Y[:4])]}, "got batches of float32[4, 3, 2], int32[4]"),
    "validation": ({"validation": (X[:2], Y[:2])}, "validation must be the same as before"),
    "batch size": ({"batch_size": 6}, "batch_size must be the same as before to resume the run, 4"),
    "seed": ({"seed": 1}, "seed must be the same as before to resume the run, 0, got 1; pass"),
    "accumulate": ({"accumulate": 2}, "accumulate must be the same as before"),
    "optimizer": ({"optimizer": optax.adam(0.1)}, "has a run of another optimizer: state['opt_s"),
}


@pytest.fixture(scope="module")
def run_of_two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    call(run_dir=folder, validation=(X[:4], Y[:4]))
    return folder


@pytest.mark.parametrize("name", RESUMED)
def test_resume_with_other_inputs_raises(name, run_of_two_steps):
    options, message = RESUMED[name]
    files = sorted(run_of_two_steps.rglob("*"))
    options = {"validation": (X[:4], Y[:4]), "steps": 4} | options
    with pytest.raises((ValueError, OSError)) as error:
        call(run_dir=run_of_two_steps, resume=True, **options)
    assert message in str(error.value)
    assert sorted(run_of_two_steps.rglob("*")) == files


def test_tensors_and_lists_are_converted(run_of_two_steps):
    """They equal the arrays, so that the run can be resumed with them."""
    validation = [*X[:4].tolist()], Tensor(Y[:4])
    data = (Tensor(X), jnp.asarray(Y))
    options = {"validation": (np.asarray(validation[0], np.float32), validation[1])}
    assert call(data=data, run_dir=run_of_two_steps, resume=True, **options).step == 2
    with pytest.raises(ValueError, match="validation must be the same as before"):
        call(data=data, run_dir=run_of_two_steps, resume=True, validation=validation)


def test_options_of_a_run_name_their_owner():
    values = {"steps": 1, "batch_size": 2, "eval_every": "x"}
    with pytest.raises(ValueError, match="^owner: eval_every must be a positive int, got 'x'"):
        check_run_options("owner", values)


def test_class_weights_may_be_an_array():
    model = Classifier(body(1), 2, rngs=RNGS)
    with pytest.raises(
        ValueError, match="^fit: class_weights must have one number for .* 2 classes, got 3"
    ):
        call(model, TASK, loss=None, class_weights=np.ones(3))


def test_nan_in_the_data_of_a_task_is_named():
    xs = TASK.train.xs.copy()
    xs[:, 0, 0] = np.nan
    data = replace(TASK, train=TASK.train._replace(xs=xs))
    with pytest.raises(
        NonFiniteLoss, match="data: train.xs must be finite .* at example 0, step 0"
    ):
        call(Classifier(body(), 2, rngs=RNGS), data, loss=None)
